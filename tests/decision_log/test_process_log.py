"""The decision log of a process, as its settings say, and what is done for it every few seconds."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from policyd.decision_log.process_log import keep_checked, keep_flushed, open_log
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyReason
from policyd.decision_log.spool import SpoolWriter, Sync
from policyd.decision_log.writer import DecisionLog
from policyd.errors import LogFull, LogUnwritable
from tests.support.hurried import HurriedLoop
from tests.support.records import decision_id, record

MINUTE = 7


class Settings(NamedTuple):
    spool: Path
    spool_limit: int = 2**20
    spool_sync: Sync = "never"
    drop_when_full: bool = False
    drop_on_error: bool = False


def opened(settings: Settings) -> DecisionLog:
    return open_log(settings, "me", lambda: MINUTE * 60.0)


def refused_key() -> RefusedKey:
    return RefusedKey(decision_id(), RefusedKeyReason.UNKNOWN, "192.0.2.1")


def written(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("me-*.jsonl")))


def segments(folder: Path) -> int:
    return len(list(folder.glob("me-*.jsonl")))


def open_files(folder: Path) -> int:
    """How many files in this folder the process has open, beside the folder."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(str(link.readlink()).startswith(f"{folder}/") for link in links)


async def test_where_it_is_written(tmp_path: Path) -> None:
    """The log stands in the spool's folder, by the name of its process, which counts of refused
    keys have as well, beside the minute of the clock."""
    log = opened(Settings(tmp_path))
    log.append([record(key_id="key_7"), refused_key()])
    log.flush()
    await log.close()
    decision, count, _ = map(msgspec.json.decode, written(tmp_path).splitlines())
    assert decision[4] == "key_7"
    assert (count[1], count[3]) == ("me", MINUTE)


@pytest.mark.parametrize("drops", [False, True])
async def test_a_full_spool(tmp_path: Path, drops: bool) -> None:
    """Beyond its limit, the spool takes no decision: it is counted where the settings say so."""
    log = opened(Settings(tmp_path, spool_limit=2**16, drop_when_full=drops))
    log.append([record()])
    many = [record(summary="x" * 500) for _ in range(200)]
    if drops:
        log.append(many)
    else:
        with pytest.raises(LogFull):
            log.append(many)
    assert log.lost == (200 if drops else 0)
    await log.close()


@pytest.mark.parametrize("drops", [False, True])
async def test_a_spool_that_cannot_be_written(tmp_path: Path, drops: bool) -> None:
    """A spool without its folder takes no decision: it is counted where the settings say so."""
    folder = tmp_path / "spool"
    log = opened(Settings(folder, drop_on_error=drops))
    take_away(folder)
    if drops:
        log.append([record()])
    else:
        with pytest.raises(LogUnwritable):
            log.append([record()])
    assert log.lost == (1 if drops else 0)
    await log.close()


def take_away(folder: Path) -> None:
    """Put a file where the folder was."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.touch()


@pytest.mark.parametrize("sync", ["never", "interval", "always"])
async def test_when_the_disk_has_it(tmp_path: Path, sync: Sync) -> None:
    """Only with `always` does an answer wait for the disk. With `never` no file is kept open to be
    synced: only the last one, and that of losses."""
    log = opened(Settings(tmp_path, spool_limit=2**16, spool_sync=sync))
    waits = log.append([record()])
    assert (waits is not None) == (sync == "always")
    pending = [waits] if waits is not None else []
    while segments(tmp_path) < 2:
        more = log.append([record(summary="x" * 500)])
        if more is not None:
            pending.append(more)
    assert open_files(tmp_path) == (2 if sync == "never" else 3)
    for one in pending:
        await one
    await log.close()


def in_a_hurry(
    log: DecisionLog,
    keep: Callable[[DecisionLog], Coroutine[object, object, None]],
    begin: Callable[[], object],
    is_done: Callable[[], bool],
) -> list[float]:
    """What a task waits for that keeps a log, while something has to be done again and again."""

    async def again() -> None:
        task = asyncio.create_task(keep(log))
        for _ in range(3):
            begin()
            while not is_done():
                await asyncio.sleep(0)
                assert not task.done()
        task.cancel()
        await log.close()

    loop = HurriedLoop()
    try:
        loop.run_until_complete(again())
    finally:
        loop.close()
    return [delay for delay, _ in loop.later]


def test_counts_of_refused_keys_are_written(tmp_path: Path) -> None:
    """Every five seconds, the counts that are new."""
    log = opened(Settings(tmp_path))
    sizes = [0]

    def begin() -> None:
        sizes.append(len(written(tmp_path)))
        log.append([refused_key()])

    waits = in_a_hurry(log, keep_flushed, begin, lambda: len(written(tmp_path)) > sizes[-1])
    assert set(waits[:3]) == {5.0}


class Checked(DecisionLog):
    """A log that counts how often it is checked."""

    checks = 0

    async def check(self) -> None:
        self.checks += 1
        await super().check()


def test_whether_decisions_can_be_logged(tmp_path: Path) -> None:
    """Every second, a look whether they can: the first one at once."""
    log = Checked(SpoolWriter(tmp_path, "me", 2**20), "me", drop_when_full=False)
    seen = [-1]
    waits = in_a_hurry(
        log, keep_checked, lambda: seen.append(log.checks), lambda: log.checks > seen[-1]
    )
    assert seen[:2] == [-1, 0]
    assert set(waits[:2]) == {1.0}
