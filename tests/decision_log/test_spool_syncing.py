"""What a sync of the spool has the disk take, and the thread that syncs run in."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from policyd.decision_log.spool.problems import cause, unwritable
from policyd.decision_log.spool.syncing import SyncThread, Unsynced
from policyd.decision_log.spool.system import System
from policyd.errors import LogFull, LogUnwritable


class Disk(System):
    """Notes what is synced and closed, by descriptor; `meanwhile` is done during a sync of data."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def fsync(self, descriptor: int) -> None:  # type: ignore[override]  # static there
        self.calls.append(("name", descriptor))
        os.fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:  # type: ignore[override]  # static there
        self.calls.append(("data", descriptor))
        self.meanwhile()
        os.fdatasync(descriptor)

    def close(self, descriptor: int) -> None:
        self.calls.append(("close", descriptor))
        os.close(descriptor)

    @property
    def told(self) -> list[tuple[str, int]]:
        """The calls since this was last asked."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def new_file(folder: int, name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)


def test_names_and_data(folder: int, disk: Disk) -> None:
    """A sync includes the name of a new file, once, and what was written to files since."""
    with closing(Unsynced(folder, disk)) as unsynced:
        unsynced.sync()
        assert disk.told == []
        one, two = new_file(folder, "one"), new_file(folder, "two")
        unsynced.begin(one)
        unsynced.sync()
        assert disk.told == [("name", folder), ("data", one)]
        unsynced.sync()
        assert disk.told == [("data", one)]
        unsynced.begin(two)
        assert disk.told == []
        unsynced.sync()
        assert disk.told == [("name", folder), ("data", one), ("data", two), ("close", one)]
    assert disk.told == [("close", two)]
    unsynced.close()
    assert disk.told == []


def fail() -> None:
    raise OSError(errno.EIO, "it fails")


def test_a_sync_that_fails(folder: int, disk: Disk) -> None:
    """The next sync makes up for the names, also of a file that was begun during the failed one."""
    with closing(Unsynced(folder, disk)) as unsynced:
        one, two = new_file(folder, "one"), new_file(folder, "two")

        def begin_and_fail() -> None:
            unsynced.begin(two)
            fail()

        unsynced.begin(one)
        disk.meanwhile = fail
        with pytest.raises(OSError, match="it fails"):
            unsynced.sync()
        assert disk.told == [("name", folder), ("data", one)]
        disk.meanwhile = lambda: None
        unsynced.sync()
        assert disk.told == [("name", folder), ("data", one)]
        disk.meanwhile = begin_and_fail
        with pytest.raises(OSError, match="it fails"):
            unsynced.sync()
        disk.calls.clear()
        disk.meanwhile = lambda: None
        unsynced.sync()
        assert disk.told == [("name", folder), ("data", one), ("data", two), ("close", one)]


def test_a_replaced_file_whose_sync_fails(folder: int, disk: Disk) -> None:
    """A replaced file is closed even if its sync fails, because nothing is written to it any
    more."""
    with closing(Unsynced(folder, disk)) as unsynced:
        one, two = new_file(folder, "one"), new_file(folder, "two")
        unsynced.begin(one)
        unsynced.begin(two)
        disk.meanwhile = fail
        with pytest.raises(OSError, match="it fails"):
            unsynced.sync()
        assert disk.told == [("name", folder), ("data", one), ("close", one)]
    assert disk.told == [("close", two)]


async def test_the_thread() -> None:
    """The thread syncs once for each request, keeps no process from ending, and ends."""
    runs: list[threading.Thread] = []
    syncing = SyncThread(lambda: runs.append(threading.current_thread()))
    assert await syncing.request() is None
    syncing.request().cancel()
    assert await syncing.request() is None
    assert len(runs) == 3
    [thread] = set(runs)
    assert thread.daemon
    assert thread.name == "spool-sync"
    syncing.close()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert len(runs) == 3


async def test_the_error_of_a_sync() -> None:
    """An error goes to those that wait for that run, and to no later one."""
    failing = True

    def work() -> None:
        if failing:
            fail()

    syncing = SyncThread(work)
    error = await syncing.request()
    assert error is not None
    assert error.errno == errno.EIO
    failing = False
    assert await syncing.request() is None
    syncing.close()


AT_THE_DISK = "see to the folder and the disk that --spool names"


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [
        (errno.ENOSPC, LogFull, "{at} ({error}), or serve with --log-full drop"),
        (errno.EDQUOT, LogFull, "{at} ({error}), or serve with --log-full drop"),
        (errno.EIO, LogUnwritable, "{at} ({error}), or serve with --log-error drop"),
        (errno.EMFILE, LogUnwritable, "{error}. Raise the limit of open files (ulimit -n; "),
        (errno.ENFILE, LogUnwritable, "{error}. Raise the limit of open files (ulimit -n; "),
        (0, LogUnwritable, "{at}, or serve with --log-error drop"),
    ],
)
def test_the_fix_for_each_cause(number: int, kind: type, fix: str) -> None:
    """An error names what cannot be done, the cause, and the setting that allows to go on."""
    error = OSError(number, os.strerror(number)) if number else None
    fix = fix.format(at=AT_THE_DISK, error=os.strerror(number))
    found = unwritable("be synced", error)
    assert type(found) is kind
    assert str(found) == f"the decision log cannot be synced: {cause(error)}"
    assert cause(error).startswith(fix)
    assert cause(error) == fix or fix.endswith("; ")
    assert cause(error).endswith(("drop", "or lower --max-connections"))
