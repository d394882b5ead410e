"""The tools of the faults: a load that they strike, and the processes and files that they hit."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from benchmarks.rig import Rig
from tests.support import processes
from tests.support.processes import Policyd
from tests.support.silent import SilentProxy


class Plan(NamedTuple):
    """How much of each fault there is."""

    seconds: float = 20.0
    """Seconds that a fault lasts."""
    kills: int = 50
    restarts: int = 100
    held: int = 1200
    clients: int = 400


STRUCK_AT: list[float] = []
"""The moment of the fault under way, of time.monotonic()."""
RECOVERIES: list[float | None] = []
"""Seconds until all was as before; None: it is not."""


@asynccontextmanager
async def struck(made: Rig, *, clients: int = 8) -> AsyncIterator[None]:
    """Load before, during and after a fault, until all is as before."""
    async with made.load(clients):
        await made.more(50)
        STRUCK_AT[:] = [time.monotonic()]
        RECOVERIES[:] = [None]
        try:
            yield
            RECOVERIES[:] = [await made.recovered()]
        except TimeoutError:
            sys.stderr.write("  it does not recover\n")
    for one in made.replicas:
        if one.poll() is None:
            await asyncio.to_thread(one.stop)


async def children(server: Policyd) -> list[int]:
    """The IDs of all processes that it has started, directly or not."""
    await asyncio.sleep(0)
    return family(server.pid)[1:]


def family(pid: int) -> list[int]:
    """Its own ID, and those of all processes that it has started."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return [pid]
    return [pid, *(one for word in words for one in family(int(word)))]


def is_worker(pid: int, module: str = "policyd.server.worker") -> bool:
    """Whether the process runs this module."""
    with contextlib.suppress(OSError):
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def send_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that still run."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def replaced(program: processes.Program, module: str) -> None:
    """SIGHUP, and wait until every worker is another one."""

    def workers() -> set[int]:
        return {pid for pid in family(program.pid) if is_worker(pid, module)}

    before = workers()
    program.send(signal.SIGHUP)
    async with asyncio.timeout(120):
        while len(now := workers()) != len(before) or now & before:  # noqa: ASYNC110  # other processes set no event
            await asyncio.sleep(0.05)


def behind(proxy: SilentProxy, made: Rig) -> str:
    """The database's URL through a proxy."""
    name = sa.make_url(made.database_url).database
    return f"postgresql+psycopg://postgres@{proxy.host}:{proxy.port}/{name}"


def database_file(made: Rig) -> Path:
    """SQLite's file."""
    return Path(made.database_url.removeprefix("sqlite:///"))


def database_files(made: Rig) -> list[Path]:
    """The database file, and the files that SQLite keeps beside it."""
    file = database_file(made)
    return [file, *(one for end in ("-wal", "-shm") if (one := Path(f"{file}{end}")).exists())]


def back_up(made: Rig) -> Path:
    """A copy of the database, in one file."""
    target = made.folder / "backup.db"
    with (
        contextlib.closing(sqlite3.connect(database_file(made))) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    return target


@contextmanager
def full_disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A small disk without room, and the file that takes all of it."""
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))
    subprocess.run(mount, check=True)
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    try:
        yield folder, ballast
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)  # noqa: S607  # a system tool
