"""The decision log as a worker writes it: what an entry waits for, and how failures end.

test_spool_errors.py has each error at each system call; here each rule stands by itself.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policyd.decision_log import writer as decision_log
from policyd.decision_log.record import Record
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount, RefusedKeyReason
from policyd.decision_log.spool import SpoolReader, SpoolWriter, Sync
from policyd.decision_log.spool.system import System
from policyd.decision_log.writer import DecisionLog
from policyd.errors import LogFull, LogUnwritable
from tests.support.records import decision_id, outcome, record

LIMIT = 2**20


class Disk(System):
    """A disk of which one call fails while the test wants, and which counts its syncs."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.syncs = 0

    def _check(self, call: str) -> None:
        if number := self.failing.get(call):
            raise OSError(number, os.strerror(number))

    def write(self, *given: Any) -> int:
        self._check("write")
        return os.write(*given)

    def fdatasync(self, descriptor: int) -> None:  # type: ignore[override]  # static there
        self.syncs += 1
        self._check("fdatasync")
        os.fdatasync(descriptor)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def spool(tmp_path: Path, disk: Disk) -> Iterator[SpoolWriter]:
    with closing(SpoolWriter(tmp_path, "a", LIMIT, "always", disk)) as spool:
        yield spool


def log_of(spool: SpoolWriter, sync: Sync = "never", *, drops: bool = False) -> DecisionLog:
    return DecisionLog(spool, "a", drop_when_full=drops, drop_on_error=drops, sync=sync)


def refused_key() -> RefusedKey:
    return RefusedKey(decision_id(), RefusedKeyReason.UNKNOWN, "192.0.2.1")


def lines(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


def segments(folder: Path) -> int:
    return len(list(folder.glob("*.jsonl")))


def losses(folder: Path) -> dict[str, int]:
    with closing(SpoolReader(folder)) as reader:
        return reader.losses()


@pytest.mark.parametrize("sync", ["never", "interval"])
def test_an_entry_that_waits_for_no_sync(tmp_path: Path, spool: SpoolWriter, sync: Sync) -> None:
    """Entries are written as one batch, and the answer may leave at once."""
    one = record()
    assert log_of(spool, sync).append([one, outcome(one), refused_key()]) is None
    assert lines(tmp_path) == 2


async def test_an_entry_that_waits_for_its_sync(spool: SpoolWriter, disk: Disk) -> None:
    """With `always` the disk has an entry once it was awaited; a refused key waits for nothing."""
    log = log_of(spool, "always")
    assert log.append([refused_key()]) is None
    assert spool.written == 0
    durable = log.append([record()])
    assert durable is not None
    await durable
    assert disk.syncs == 1


def test_counts_of_refused_keys(tmp_path: Path, spool: SpoolWriter, disk: Disk) -> None:
    """flush() writes counts of refused keys; if that fails, the next flush() writes them."""
    log = log_of(spool)
    log.append([refused_key()])
    disk.failing = {"write": errno.EIO}
    log.flush()
    assert lines(tmp_path) == 0
    disk.failing = {}
    for _ in range(2):
        log.flush()
        assert lines(tmp_path) == 1


def test_the_minute_of_a_count(tmp_path: Path, spool: SpoolWriter) -> None:
    """Refused keys are counted by the minutes of the log's clock."""
    log = DecisionLog(spool, "a", drop_when_full=False, clock=lambda: 630.0)
    log.append([refused_key()])
    log.flush()
    [file] = tmp_path.glob("*.jsonl")
    [count, _] = file.read_bytes().splitlines()
    assert msgspec.json.decode(count, type=RefusedKeyCount).minute == 10


def test_counts_for_which_there_is_no_room(tmp_path: Path) -> None:
    """While the spool is fuller than a quarter, counts wait."""
    with closing(SpoolWriter(tmp_path, "a", 4000)) as spool:
        log = log_of(spool)
        spool.write(b"x" * 499 + b"\n")
        spool.write(b"x" * 500 + b"\n")
        log.append([refused_key()])
        spool._looked_at = 0.0  # As if some time had passed.
        log.flush()
        assert lines(tmp_path) == 2
        min(tmp_path.glob("*.jsonl")).unlink()
        spool._looked_at = 0.0
        log.flush()
        assert lines(tmp_path) == 2, "the second line, and the count"


@pytest.mark.parametrize("sync", ["never", "always"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_entries_that_are_dropped(
    tmp_path: Path,
    spool: SpoolWriter,
    disk: Disk,
    number: int,
    sync: Sync,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every entry of the batch counts as lost, and there is nothing to wait for. The log tells so
    at once, and then seldom."""
    log = log_of(spool, sync, drops=True)
    disk.failing = {"write": number}
    for _ in range(3):
        assert log.append([record(), record()]) is None
    assert losses(tmp_path) == {"a": 6}
    [line] = [one.getMessage() for one in caplog.records if one.name == decision_log.__name__]
    assert line == f"decisions are dropped and counted: {log.problem}"
    assert os.strerror(number) in line


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_entries_that_are_refused(
    tmp_path: Path,
    spool: SpoolWriter,
    disk: Disk,
    number: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No entry of a refused batch is written or counted, and the log gives the cause once."""
    log = log_of(spool)
    disk.failing = {"write": number}
    for _ in range(3):
        with pytest.raises(LogFull, match=os.strerror(number)):
            log.append([record()])
    assert (lines(tmp_path), losses(tmp_path)) == (0, {})
    [line] = [one.getMessage() for one in caplog.records if one.name == decision_log.__name__]
    assert line == f"decisions are refused: {log.problem}"


def test_an_outcome_that_cannot_be_written(tmp_path: Path, spool: SpoolWriter, disk: Disk) -> None:
    """An outcome that cannot be written is refused even if entries may be dropped, and is no loss:
    the gateway sends it again."""
    disk.failing = {"write": errno.EIO}
    with pytest.raises(LogUnwritable):
        log_of(spool, drops=True).append([outcome(record())])
    assert losses(tmp_path) == {}


@pytest.mark.parametrize("drops", [False, True])
async def test_a_sync_that_fails(
    tmp_path: Path, spool: SpoolWriter, disk: Disk, drops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A decision is refused, or allowed but not counted as lost: the kernel has it. An outcome is
    refused in either case.
    """
    log = log_of(spool, "always", drops=drops)
    disk.failing = {"fdatasync": errno.EIO}
    one, other = log.append([record()]), log.append([outcome(record())])
    assert one
    assert other
    if drops:
        await one
    else:
        with pytest.raises(LogUnwritable, match="cannot be synced"):
            await one
    with pytest.raises(LogUnwritable, match="cannot be synced"):
        await other
    assert log.denies is not drops
    then = "answered before the disk has them" if drops else "refused"
    assert caplog.messages == [f"decisions are {then}: {log.problem}"]
    assert "cannot be synced: " in caplog.text
    assert losses(tmp_path) == {}
    disk.failing = {}
    again = log.append([record()])
    assert again
    await again
    assert segments(tmp_path) == 2, "the file whose sync failed is written no more"


async def test_no_background_syncs(spool: SpoolWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `never` there is nothing to keep synced."""
    monkeypatch.setattr(decision_log, "_INTERVAL", 0.001)
    async with asyncio.timeout(30):
        await log_of(spool).keep_synced()


@pytest.mark.parametrize("sync", ["interval", "always"])
async def test_background_syncs(
    spool: SpoolWriter, disk: Disk, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written since the last sync is synced once: with `always`, before its answer."""
    monkeypatch.setattr(decision_log, "_INTERVAL", 0.001)
    log = log_of(spool, sync)
    keeping = asyncio.create_task(log.keep_synced())
    for syncs in (1, 2):
        await add(log)
        async with asyncio.timeout(30):
            while disk.syncs < syncs:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert disk.syncs == syncs
    keeping.cancel()


async def add(log: DecisionLog) -> None:
    if durable := log.append([record()]):
        await durable


@pytest.mark.parametrize(("sync", "syncs"), [("never", 0), ("interval", 1), ("always", 2)])
async def test_the_end(spool: SpoolWriter, disk: Disk, sync: Sync, syncs: int) -> None:
    """At the end the spool is synced a last time, where it is at all, and left to the shipper."""
    log = log_of(spool, sync)
    await add(log)
    await log.close()
    assert disk.syncs == syncs
    assert spool._segment == -1


async def test_what_is_not_asked_for(spool: SpoolWriter, disk: Disk) -> None:
    """Unless it is told otherwise, a log syncs nothing, and refuses what cannot be written."""
    log = DecisionLog(spool, "a", drop_when_full=True)
    assert log.append([record()]) is None
    disk.failing = {"write": errno.EIO}
    with pytest.raises(LogUnwritable):
        log.append([record()])
    disk.failing = {}
    await log.close()
    assert disk.syncs == 0


async def test_an_end_without_a_sync(
    tmp_path: Path, spool: SpoolWriter, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the last sync fails, the log tells so, and what the kernel has is kept."""
    log = log_of(spool, "interval")
    log.append([record()])
    disk.failing = {"fdatasync": errno.EIO}
    await log.close()
    assert "cannot be synced" in caplog.text
    assert [one.levelno for one in caplog.records] == [logging.ERROR]
    assert lines(tmp_path) == 1


async def problem_of(log: DecisionLog) -> type[LogFull] | None:
    """The kind of the log's problem, after a new look at it."""
    await log.check()
    return type(log.problem) if log.problem else None


@pytest.mark.parametrize(("sync", "syncs"), [("never", 0), ("interval", 0), ("always", 1)])
async def test_whether_decisions_can_be_logged(
    spool: SpoolWriter, disk: Disk, tmp_path: Path, sync: Sync, syncs: int
) -> None:
    """A log that could not be written tries again by itself, and leaves nothing in the spool. It
    syncs where answers wait for that."""
    log = log_of(spool, sync)
    disk.failing = {"write": errno.EIO}
    assert await problem_of(log) is None  # Nothing was in doubt, so nothing was tried.
    with pytest.raises(LogUnwritable):
        log.append([record()])
    assert await problem_of(log) is LogUnwritable
    assert log.denies
    disk.failing = {}
    assert await problem_of(log) is None
    assert disk.syncs == syncs
    durable = log.append([one := record()])
    if durable:
        await durable
    with closing(SpoolReader(tmp_path)) as reader:
        assert reader.lock()
        [line] = [line for chunk in reader.chunks(2**20) for line in chunk.lines]
    assert msgspec.json.decode(line, type=Record).id == one.id


@pytest.mark.parametrize("drops", [False, True])
async def test_whether_a_full_log_denies(tmp_path: Path, drops: bool) -> None:
    """A log at its limit is known to be full before a request comes. It denies only if it is to."""
    with closing(SpoolWriter(tmp_path, "a", 4096 + 400)) as spool:
        log = DecisionLog(spool, "a", drop_when_full=drops)
        assert await problem_of(log) is None
        log.append([record(summary="x" * 400)])
        assert await problem_of(log) is LogFull
        assert log.denies is not drops


async def test_whether_a_disk_syncs(spool: SpoolWriter, disk: Disk) -> None:
    """Where answers wait for a sync, decisions can be logged only once one has succeeded."""
    log = log_of(spool, "always")
    disk.failing = {"fdatasync": errno.EIO}
    durable = log.append([record()])
    assert durable
    with pytest.raises(LogUnwritable):
        await durable
    assert await problem_of(log) is LogUnwritable
    disk.failing = {}
    assert await problem_of(log) is None
    await log.close()
