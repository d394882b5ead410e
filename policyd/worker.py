"""One of several workers, as its supervisor starts it: `python -m policyd.worker`."""

import asyncio
import json
import signal
import sys
from contextlib import suppress

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
            _say("ready")
            until = [reader.read(), stopping.wait(), _beat()]
            tasks = [asyncio.create_task(one) for one in until]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except PolicydError as error:
        _say(str(error))
        sys.exit(1)


async def _beat() -> None:
    """Tell the supervisor that the event loop still turns."""
    while True:
        await asyncio.sleep(1)
        _say("alive")


def _say(line: str) -> None:
    # A supervisor that is gone hears nothing, and the closed input ends this worker.
    with suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    start_logging(sys.argv[1])
    run(_work())
