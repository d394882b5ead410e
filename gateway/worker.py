"""One worker of the gateway, as the supervisor starts it: `python -m gateway.worker`."""

import sys

from gateway.server import Server
from gateway.settings import load_settings
from policyd.command.parent import Parent
from policyd.command.process import run, settle
from policyd.telemetry.log import start_logging


async def _work() -> None:
    async with Parent(load_settings) as parent:
        server = Server(parent.settings, listening=parent.listening("listen"))
        async with server:
            settle()
            parent.ready(lambda: server.is_ready)
            await parent.serve(server)


if __name__ == "__main__":
    start_logging(*sys.argv[1:])
    run(_work())
