"""One of several workers, as its supervisor starts it: `python -m policyd.worker`."""

import asyncio
import json
import signal
import sys

from policyd.configuration import run, start_logging
from policyd.errors import PolicydError
from policyd.server import Server
from policyd.settings import load_settings


async def _work() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    settings = load_settings(json.loads(await reader.readline()))
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    # Ctrl-C reaches the whole group; the supervisor tells its workers itself.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    try:
        async with Server(settings, shared=True):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            told = [asyncio.create_task(reader.read()), asyncio.create_task(stopping.wait())]
            await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
            for task in told:
                task.cancel()
    except PolicydError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(1)


if __name__ == "__main__":
    start_logging(sys.argv[1])
    run(_work())
