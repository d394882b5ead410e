"""Processes that read bodies: none is left behind, however its request or its parent ends."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from policyd.descriptor.body_readers import BodyReaders
from policyd.descriptor.pieces import Pieces
from tests.descriptor.test_body_memory import LARGE, PLAIN, chat
from tests.support.waiting import until

# A parent that has a reader without a body, and one that has half of a body; it says which.
PARENT = """
import asyncio
from concurrent.futures import ThreadPoolExecutor
from policyd.descriptor.body_readers import _Reader
from policyd.descriptor.reader_process import BodyContext, heading

async def main():
    starter = ThreadPoolExecutor(1)
    idle, busy = await _Reader.start(starter), await _Reader.start(starter)
    about = BodyContext("application/json", "", None, 2**22)
    busy._bodies.write(heading(about, 2**20) + b"{" * 2**19)
    await busy._bodies.drain()
    print(idle.process, busy.process, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def children() -> set[str]:
    """The processes that this one has started, ended ones that were not reaped among them."""
    tasks = Path("/proc/self/task").iterdir()
    return {child for one in tasks for child in (one / "children").read_text().split()}


def is_running(process: str) -> bool:
    """Whether a process is there, and no ended one that its parent has yet to reap."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("milliseconds", [0, 1, 3, 10, 30, 100])
async def test_a_request_that_ends_while_its_reader_starts(milliseconds: int) -> None:
    """Neither a process nor an ended one that nothing reaps is left."""
    before = children()
    readers = BodyReaders()
    reading = asyncio.create_task(readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN))
    await asyncio.sleep(milliseconds / 1000)
    reading.cancel()
    await asyncio.wait({reading})
    assert not readers.processes or not reading.cancelled()
    readers.close()
    await asyncio.sleep(0.2)  # A process that is on its way has come.
    await until(lambda: children() <= before)


async def test_a_parent_that_is_killed() -> None:
    """The readers of a killed parent see the end of their input, and end."""
    command = (sys.executable, "-c", PARENT)
    parent = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    readers = (await parent.stdout.readline()).decode().split()
    assert len(readers) == 2
    assert all(map(is_running, readers))
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not any(map(is_running, readers)))
