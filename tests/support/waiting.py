"""Waiting for what sends no event."""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 60
"""Seconds after which it counts as hanging."""


async def until(holds: Callable[..., object]) -> None:
    """Wait until other tasks, or other processes, have made this true."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # They set no event here.
            await asyncio.sleep(0.005)


def wait_until(holds: Callable[..., object]) -> None:
    """The same in a test without an event loop."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
