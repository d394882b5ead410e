"""One of several workers, as its supervisor starts it: `python -m policyd.worker`."""

import sys

from policyd.child import Parent
from policyd.configuration import run, start_logging
from policyd.server import Server


async def _work() -> None:
    async with Parent() as parent, Server(parent.settings, shared=True) as server:
        parent.ready(lambda: server.can_decide)
        await parent.gone_during()


if __name__ == "__main__":
    start_logging(sys.argv[1])
    run(_work())
