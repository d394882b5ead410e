"""The process of one worker, as the supervisor starts it: `python -m policyd.server.worker`."""

import sys

from policyd.command.parent import Parent
from policyd.command.process import run, settle
from policyd.server.preparation import preparing
from policyd.server.server import Server
from policyd.settings import load_settings
from policyd.telemetry.log import start_logging


async def _work() -> None:
    async with Parent(load_settings) as parent:
        if parent.position is not None:
            # This worker may be of a later version than the supervisor, which has prepared its own.
            await preparing(parent.settings, is_first=False)
        server = Server(
            parent.settings,
            shared=True,
            is_first=parent.is_first,
            listening=parent.listening("http"),
            position=parent.position,
        )
        async with server:
            settle()
            parent.ready(lambda: server.is_ready)
            await parent.serve(server)


if __name__ == "__main__":
    start_logging(*sys.argv[1:])
    run(_work())
