"""Each failure of the spool is one of two kinds, and each kind has its own setting.

There is no room (--log-full), or the disk or the process fails (--log-error): a decision is then
refused, or answered and counted as lost. No decision that was answered is lost otherwise.
"""

import asyncio
import errno
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from policyd.decision_log import spool
from policyd.decision_log import writer as decision_log
from policyd.decision_log.record import Record
from policyd.decision_log.spool import SpoolReader, SpoolWriter
from policyd.decision_log.spool import writer as writing
from policyd.decision_log.spool.system import System
from policyd.decision_log.writer import DecisionLog
from policyd.errors import LogFull, LogUnwritable, SettingsError
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.open_files import delete_in_use, open_files
from tests.support.processes import Policyd
from tests.support.records import outcome, record
from tests.support.requirements import missing

LIMIT = 40_000
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # A folder of its own is made there.
FULL = (errno.ENOSPC, errno.EDQUOT)
FAILS = (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.EACCES)
CALLS = [name for name in vars(System) if not name.startswith("_") and name != "close"]
"""The calls that may fail. A close() that fails has closed all the same."""


class Failing(System):
    """A kernel of which one call fails, as long as the test wants, after some that succeed."""

    def __init__(self, call: str, number: int, spared: int = 0) -> None:
        self._call = call
        self._number = number
        self._spared = spared
        self.fails = False

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in CALLS and self.fails and name == self._call:
            self._spared -= 1
            if self._spared >= 0:
                return found
            number = self._number

            def fail(*_: object, **__: object) -> None:
                raise OSError(number, os.strerror(number))

            return fail
        return found


class Case:
    """A decision log on a kernel that fails, and the results of its writes."""

    def __init__(self, folder: Path, kernel: Failing, drops: tuple[bool, bool]) -> None:
        self.folder = folder
        self.spool = SpoolWriter(folder, "worker", LIMIT, "always", kernel)
        self.log = DecisionLog(
            self.spool,
            "worker",
            drop_when_full=drops[0],
            drop_on_error=drops[1],
            sync="always",
        )
        self.answered: list[str] = []
        self.dropped = 0
        self.errors: list[LogFull] = []

    async def ask(self, times: int) -> None:
        """Log so many decisions, which fill several files."""
        for _ in range(times):
            one = record(summary="x" * 400)
            before = self.spool.written
            try:
                if durable := self.log.append([one]):
                    await durable
            except LogFull as error:
                self.errors.append(error)
            else:
                if self.spool.written > before:
                    self.answered.append(one.id)
                else:
                    self.dropped += 1

    async def close(self) -> tuple[list[str], int]:
        """What the shipper finds: the decisions, and how many were lost."""
        self.log.flush()
        await self.log.close()
        reader = SpoolReader(self.folder)
        assert reader.lock()
        lines = []
        for chunk in reader.chunks(2**20):
            lines += chunk.lines
            reader.done(chunk)
        found = [msgspec.json.decode(line, type=Record).id for line in lines]
        lost = reader.losses()
        reader.close()
        return found, sum(lost.values())


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(writing, "_LOOK", 0.0)
    # In memory if possible, as there are thousands of syncs.
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        spool.prepare(Path(place, "spool"), "database")
        yield Path(place, "spool")


@pytest.mark.slow
@pytest.mark.parametrize("drops", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("number", [*FULL, *FAILS], ids=errno.errorcode.get)
async def test_each_error_at_each_call(folder: Path, number: int, drops: tuple[bool, bool]) -> None:
    """Each error is reported as its own kind, obeys its own setting, and ends with its cause."""
    kind = LogFull if number in FULL else LogUnwritable
    may_drop = drops[kind is LogUnwritable]
    refusing = set()
    for call in CALLS:
        kernel = Failing(call, number)
        case = Case(folder, kernel, drops)
        await case.ask(2)
        kernel.fails = True
        await case.ask(9)
        kernel.fails = False
        before = len(case.answered)
        await case.ask(9)
        assert len(case.answered) == before + 9, call
        assert {type(one) for one in case.errors} <= {kind}, call
        assert all(os.strerror(number) in str(one) for one in case.errors), call
        assert not (case.errors and may_drop), call
        assert not (case.dropped and not may_drop), call
        refusing |= {call} if case.errors or case.dropped else set()
        logged, lost = await case.close()
        assert set(case.answered) <= set(logged), call
        assert len(set(logged)) == len(logged), call
        assert lost == case.dropped, call
        shutil.rmtree(folder)
        spool.prepare(folder, "database")
    # A decision needs these. The writer can do without the others: it goes on in the old file.
    assert {"write"} <= refusing <= {"write", "fsync", "fdatasync"}


@pytest.mark.parametrize("number", [*FULL, *FAILS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "pwrite", "flock", "fstat"])
async def test_each_error_at_the_start(folder: Path, call: str, number: int) -> None:
    """A server starts on a full disk.

    A decision is then refused or dropped, and logged as soon as there is room. Any other error is
    reported at once.
    """
    kernel = Failing(call, number, spared=call == "open")  # The folder itself exists.
    kernel.fails = True
    before = open_files()
    if number in FULL:
        case = Case(folder, kernel, (False, False))
        await case.ask(2)
        assert [type(one) for one in case.errors] == [LogFull] * 2
        kernel.fails = False
        await case.ask(2)
        assert (await case.close()) == (case.answered, 0)
        assert len(case.answered) == 2
    else:
        with pytest.raises(SettingsError, match=f"--spool {re.escape(str(folder))} cannot be used"):
            Case(folder, kernel, (True, True))
    assert open_files() == before


async def test_outcomes_are_never_dropped(folder: Path) -> None:
    """No outcome is dropped: no client waits for one, and the gateway reports it again."""
    for number in (errno.EIO, errno.ENOSPC):
        spool.prepare(folder / str(number), "database")
        kernel = Failing("write", number)
        case = Case(folder / str(number), kernel, (True, True))
        kernel.fails = True
        with pytest.raises(LogFull):
            case.log.append([outcome(record())])
        assert (await case.close()) == ([], 0)


class Slow(System):
    """A disk whose syncs wait until the test lets them go."""

    def __init__(self) -> None:
        self.syncs = 0
        self.waits = threading.Event()

    def fdatasync(self, descriptor: int) -> None:  # type: ignore[override]  # static there
        self.syncs += 1
        self.waits.wait()
        os.fdatasync(descriptor)


async def test_all_that_wait_share_a_sync(folder: Path) -> None:
    """While one sync runs, the event loop goes on, and all later decisions wait for the next."""
    disk = Slow()
    writer = SpoolWriter(folder, "worker", LIMIT * 100, "always", disk)
    log = DecisionLog(writer, "worker", drop_when_full=False, sync="always")
    waiting: list[asyncio.Future[None]] = []
    for _ in range(100):
        durable = log.append([record()])
        assert durable
        waiting.append(asyncio.ensure_future(durable))
        await asyncio.sleep(0)
    assert not any(one.done() for one in waiting)
    waiting.pop().cancel()
    disk.waits.set()
    await asyncio.gather(*waiting)
    assert disk.syncs == 2
    await log.close()


@pytest.mark.parametrize("drops", [False, True])
async def test_a_disk_that_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, drops: bool
) -> None:
    """A sync that hangs fails after its time. From then on entries fail without waiting, or need no
    sync if they may be dropped, and the end of policyd is delayed no longer."""
    monkeypatch.setattr(decision_log, "_PATIENCE", 0.01)
    monkeypatch.setattr(decision_log, "_LAST", 0.01)
    disk = Slow()
    writer = SpoolWriter(folder, "worker", LIMIT, "always", disk)
    log = DecisionLog(writer, "worker", drop_when_full=True, drop_on_error=drops, sync="always")
    hangs = (
        "the decision log cannot be synced: the disk takes more than 0 s. See to the disk that "
        "--spool names, or serve with --log-error drop"
    )
    one, other = log.append([record()]), log.append([outcome(record())])
    assert one
    assert other
    with nullcontext() if drops else pytest.raises(LogUnwritable, match=hangs):
        await one
    with pytest.raises(LogUnwritable, match=hangs):
        await other
    assert str(log.problem) == hangs
    assert log.denies is not drops
    before = writer.written
    with pytest.raises(LogUnwritable, match=hangs):
        log.append([outcome(record())])
    assert writer.written == before
    if drops:
        assert log.append([record()]) is None
        assert writer.written > before
    else:
        with pytest.raises(LogUnwritable, match=hangs):
            log.append([record()])
    assert log.lost == 0
    async with asyncio.timeout(30):
        await log.check()
    assert str(log.problem) == hangs
    caplog.clear()
    await log.close()
    assert caplog.messages == [hangs]
    disk.waits.set()


async def test_a_background_sync_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions are refused until a sync succeeds again, in another file."""
    monkeypatch.setattr(decision_log, "_INTERVAL", 0.01)
    kernel = Failing("fdatasync", errno.EIO)
    writer = SpoolWriter(folder, "worker", LIMIT, "interval", kernel)
    log = DecisionLog(writer, "worker", drop_when_full=True, sync="interval")
    keeping = asyncio.create_task(log.keep_synced())

    async def try_until(works: bool) -> None:
        async with asyncio.timeout(60):
            while _is_taken(lambda: log.append([record()])) is not works:
                await asyncio.sleep(0.01)

    await try_until(True)
    kernel.fails = True
    await try_until(False)
    kernel.fails = False
    await try_until(True)
    keeping.cancel()
    await log.close()
    assert len([name for name in os.listdir(folder) if name.endswith(".jsonl")]) > 1


async def test_a_background_sync_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions are refused once a sync takes too long, until one succeeds again."""
    monkeypatch.setattr(decision_log, "_INTERVAL", 0.001)
    monkeypatch.setattr(decision_log, "_PATIENCE", 0.01)
    disk = Slow()
    writer = SpoolWriter(folder, "worker", LIMIT, "interval", disk)
    log = DecisionLog(writer, "worker", drop_when_full=True, sync="interval")
    log.append([record()])
    keeping = asyncio.create_task(log.keep_synced())

    async def wait_until(denies: bool) -> None:
        async with asyncio.timeout(30):
            while log.denies is not denies:
                await asyncio.sleep(0.001)
                await log.check()

    await wait_until(True)
    with pytest.raises(LogUnwritable, match="cannot be synced"):
        log.append([record()])
    disk.waits.set()
    await wait_until(False)
    log.append([record()])
    keeping.cancel()
    await log.close()


def _is_taken(append: Callable[[], Awaitable[None] | None]) -> bool:
    with suppress(LogUnwritable):
        assert append() is None
        return True
    return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        missing("only root can make a disk that is full soon")
    yield place
    subprocess.run(("umount", "--lazy", str(place)), check=True)


async def test_a_full_disk_at_the_start(disk: Path) -> None:
    """Once the disk has room, policyd behaves as if it had started with room."""
    spool.prepare(disk / "spool", "database")
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    spool.prepare(disk / "spool", "database")
    case = Case(disk / "spool", Failing("none", 0), (False, False))
    await case.ask(1)
    assert [type(one) for one in case.errors] == [LogFull]
    filler.unlink()
    await case.ask(2)
    assert (await case.close()) == (case.answered, 0)


def test_a_read_only_disk_at_the_start(disk: Path) -> None:
    """On a read-only disk the start fails at once."""
    spool.prepare(disk / "spool", "database")
    subprocess.run(("mount", "-o", "remount,ro", str(disk)), check=True)
    with pytest.raises(SettingsError, match="Read-only file system"):
        SpoolWriter(disk / "spool", "worker", LIMIT)


@pytest.mark.parametrize(("flag", "refuses"), [("--log-full", True), ("--log-error", False)])
async def test_a_deleted_folder(
    tmp_path: Path, start: Callable[..., Any], flag: str, refuses: bool
) -> None:
    """--log-full drop covers only a spool without room; --log-error drop needs no spool."""
    policyd = start(Policyd, tmp_path, flag, "drop")
    key = policyd.create_key("enforce")
    delete_in_use(tmp_path / "policyd.db-spool")
    request = pb.EvaluateRequest(key=key, has_user=False)
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        stub = PolicyServiceStub(channel)
        async with asyncio.timeout(30):
            refused = None
            # policyd notices it within a second.
            while not any("decisions are" in line for line in policyd.errors):
                await asyncio.sleep(0.05)
                try:
                    await stub.Evaluate(request, timeout=60)
                except grpc.aio.AioRpcError as error:
                    refused = error
    assert (refused is not None) == refuses
    assert refused is None or refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
