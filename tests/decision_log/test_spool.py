"""The spool between the workers that write it and the background worker that ships it."""

import errno
import fcntl
import os
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policyd.decision_log import spool
from policyd.decision_log.record import Record
from policyd.decision_log.shipper import Shipper, pause_after
from policyd.decision_log.spool import SpoolReader, SpoolWriter
from policyd.decision_log.spool import writer as writing
from policyd.decision_log.spool.system import System
from policyd.errors import LogFull, LogUnwritable, PositionMoved, SettingsError, StoreUnavailable
from policyd.store import LogFilter, Step, Store, positions
from policyd.store.destination import StoreDestination
from tests.support.databases import open_store
from tests.support.records import START, record

LIMIT = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spool.prepare(tmp_path / "spool", "database")
    return tmp_path / "spool"


@pytest.fixture
def writer(folder: Path) -> Iterator[SpoolWriter]:
    writer = SpoolWriter(folder, "worker", LIMIT)
    yield writer
    writer.close()


@pytest.fixture
def reader(folder: Path) -> Iterator[SpoolReader]:
    reader = SpoolReader(folder)
    assert reader.lock()
    yield reader
    reader.close()


def shipped(reader: SpoolReader) -> list[bytes]:
    """All lines that there are to ship now."""
    lines = []
    for chunk in reader.chunks(LIMIT):
        lines += chunk.lines
        reader.done(chunk)
    reader.delete(reader.finished())
    return lines


def test_a_busy_writer_keeps_no_other_waiting(
    folder: Path, writer: SpoolWriter, reader: SpoolReader
) -> None:
    """A round of shipping ends, and comes to every file, however fast one of them grows."""
    other = SpoolWriter(folder, "zother", LIMIT)
    other.write(b"other\n")
    writer.write(b"0\n")
    lines = []
    for number, chunk in enumerate(reader.chunks(LIMIT), 1):
        assert number < 10
        lines += chunk.lines
        reader.done(chunk)
        writer.write(b"%d\n" % number)
    assert lines == [b"0", b"other"]
    other.close()
    assert shipped(reader) == [b"1", b"2"]
    assert not list(folder.glob("zother*.jsonl"))


def test_a_write_of_which_half_was_read(folder: Path, reader: SpoolReader) -> None:
    """If the shipper has read half a batch that the disk took, the next batch is not lost."""

    class ReadFirst(System):
        @staticmethod
        def ftruncate(descriptor: int, size: int) -> None:
            assert shipped(reader) == [b"torn"]
            os.ftruncate(descriptor, size)

    writer = SpoolWriter(folder, "worker", LIMIT, system=ReadFirst())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24, limits[1]))
    try:
        with pytest.raises(LogUnwritable, match="cannot be written"):
            writer.write(b"torn\ntorn, too, and longer\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.write(b"a\nb\n")
    assert shipped(reader) == [b"a", b"b"]
    writer.close()


def test_a_spool_that_is_deleted(
    folder: Path, writer: SpoolWriter, reader: SpoolReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer does not go on in a deleted file: it makes a new one, or the decision is refused."""
    monkeypatch.setattr(writing, "_LOOK", 0.0)
    writer.write(b"gone\n")
    for file in folder.glob("*.jsonl"):
        file.unlink()
    writer.write(b"kept\n")
    assert shipped(reader) == [b"kept"]
    shutil.rmtree(folder)
    with pytest.raises(LogFull, match="cannot begin a new file"):
        writer.write(b"refused\n")


def test_files_of_a_process_that_starts(folder: Path, reader: SpoolReader) -> None:
    """The shipper leaves the file of a process alone that is about to lock it."""

    def forget_and_ship() -> None:
        reader.forget_losses({})
        shipped(reader)

    come_between = ComeBetween(forget_and_ship)
    writer = SpoolWriter(folder, "worker", LIMIT, system=come_between)
    writer.drop(3)
    writer.write(b"kept\n")
    assert reader.losses() == {"worker": 3}
    assert shipped(reader) == [b"kept"]
    assert come_between.calls == 4, "two files, of which each was deleted once"
    writer.close()


def test_a_shipper_that_stands_still(folder: Path, reader: SpoolReader) -> None:
    """A shipper that was stopped while it looked at a new file keeps its writer waiting for
    nothing, and deletes no file but that one when it goes on.
    """
    held: list[int] = []

    def look() -> None:
        for name in set(os.listdir(folder)) - {"database", "shipper.lock"} if not held else ():
            held.append(os.open(folder / name, os.O_RDONLY))
            fcntl.flock(held[-1], fcntl.LOCK_EX)

    writer = SpoolWriter(folder, "worker", LIMIT, system=ComeBetween(look))
    writer.write(b"kept\n")
    os.close(held[0])
    assert shipped(reader) == [b"kept"]
    assert reader.ended() == {"worker"}, "the file that was looked at"
    reader.forget_losses({})
    writer.drop(3)
    assert reader.losses() == {"worker": 3}
    writer.close()


class ComeBetween(System):
    """Lets another process act before each lock is taken, after its file was made."""

    def __init__(self, others: Callable[[], object]) -> None:
        self._others = others
        self._names: set[int] = set()
        self.calls = 0

    def flock(self, descriptor: int, operation: int) -> None:  # type: ignore[override]  # static there
        self.calls += 1
        if self.calls % 2:
            self._others()
        fcntl.flock(descriptor, operation)


def test_a_busy_log_waits() -> None:
    """After many entries the next look comes later, so that its transaction has many again."""
    assert pause_after(0) == pause_after(200) < pause_after(201)


def test_a_spool_in_use_for_another_database(folder: Path) -> None:
    """A spool from which another policyd ships is closed to a server of another database."""
    reader = SpoolReader(folder)
    assert reader.lock()
    spool.prepare(folder, "database")
    with pytest.raises(SettingsError, match="another database"):
        spool.prepare(folder, "another")
    reader.close()
    spool.prepare(folder, "another")


def test_an_entry_that_cannot_be_read(
    tmp_path: Path, writer: SpoolWriter, reader: SpoolReader
) -> None:
    """An unreadable entry holds up no other, and counts once, however often the store was away."""
    place = tmp_path / "store"
    with closing(Store(f"sqlite:///{place}/policyd.db")) as store:
        shipper = Shipper(StoreDestination(store), reader)
        good: Record = record()
        writer.write(b'["D","nonsense"]\n' + msgspec.json.encode(good) + b"\n")
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                shipper.ship()
        place.mkdir()
        store.migrate()
        assert shipper.ship() == 1
        assert store.log.page(LogFilter()) == [good]
        assert store.log.status().lost == 1


def test_losses_are_told_once(tmp_path: Path, writer: SpoolWriter, reader: SpoolReader) -> None:
    """While nothing more is lost or written, the shipper leaves the store alone."""
    with closing(open_store(f"sqlite:///{tmp_path}/policyd.db")) as store:
        shipper = Shipper(StoreDestination(store), reader)
        writer.drop(2)
        shipper.ship()
        with closing(sqlite3.connect(f"{tmp_path}/policyd.db")) as busy:
            busy.execute("BEGIN IMMEDIATE")
            shipper.ship()  # A write would fail, as the store is locked.
            busy.rollback()
        writer.drop(1)
        shipper.ship()
        assert store.log.status().lost == 3


@contextmanager
def _without_files(left: int) -> Iterator[None]:
    """Let this process open no more than `left` files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("looks", [0.0, 3600.0])
def test_the_limit(folder: Path, looks: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool never exceeds its limit, whether or not its size could be measured in time.

    An entry that fits to the byte is taken.
    """
    monkeypatch.setattr(writing, "_LOOK", looks)
    for last, fits in ((100, True), (101, False)):
        writer = SpoolWriter(folder, f"worker{last}", 1000)
        for _ in range(9):
            writer.write(b"x" * 99 + b"\n")
        if fits:
            writer.write(b"x" * (last - 1) + b"\n")
        for size in (last, 1):
            with pytest.raises(LogFull, match="--spool-limit"):
                writer.write(b"x" * (size - 1 + 100 * (not fits)) + b"\n")
        assert sum(file.stat().st_size for file in folder.glob("*.jsonl")) == 900 + 100 * fits
        writer.close()
        for file in folder.glob("*.jsonl"):
            file.unlink()


def test_no_files_left(
    folder: Path, writer: SpoolWriter, reader: SpoolReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where connections have taken all files, decisions go on, in new files too."""
    monkeypatch.setattr(writing, "_LOOK", 0.0)
    lines = [b"%06d" % number + b"x" * 1000 for number in range(300)]
    with _without_files(0):
        for line in lines:
            writer.write(line + b"\n")
        with pytest.raises(LogFull, match="--spool-limit"):
            writer.write(b"x" * LIMIT)
    assert len(list(folder.glob("*.jsonl"))) > 2
    assert shipped(reader) == lines


def test_a_file_that_cannot_be_had(
    folder: Path, writer: SpoolWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the reserve helps, the log names the cause, and how to remove it."""
    monkeypatch.setattr(writing, "_LOOK", 0.0)
    writer.write(b"before\n")
    writer._spares.close()
    files = list(folder.glob("*.jsonl"))
    with _without_files(0):
        writer.write(b"known all the same\n")
        for file in files:
            file.unlink()
        writer.leave_segment()  # As the next measurement would find it.
        with pytest.raises(LogUnwritable, match=r"Too many open files.*LimitNOFILE"):
            writer.write(b"refused\n")
    writer.write(b"after\n")


class Race(System):
    """Lets a writer write its last line and end when the shipper is about to take a lock."""

    def __init__(self) -> None:
        self.others: list[Callable[[], object]] = []

    def flock(self, descriptor: int, operation: int) -> None:  # type: ignore[override]  # static there
        while self.others:
            self.others.pop(0)()
        fcntl.flock(descriptor, operation)


def test_a_file_that_is_not_deleted(folder: Path) -> None:
    """The shipper does not delete a file that a process has just made, that it writes, or that it
    ended with an unread line.
    """
    race = Race()
    reader = SpoolReader(folder, race)
    assert reader.lock()
    file = os.open(folder / "new-00000001.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    assert shipped_without_delete(reader) == []
    finished = reader.finished()
    assert finished == {"new-00000001.jsonl": 0}
    fcntl.flock(file, fcntl.LOCK_EX)
    assert reader.delete(finished) == set(), "it is written"
    race.others = [lambda: os.write(file, b"kept\n"), lambda: os.close(file)]
    assert reader.delete(finished) == set(), "it was written until its lock was free"
    assert reader.delete(finished) == set(), "it has a line"
    assert shipped_without_delete(reader) == [b"kept"]
    assert reader.delete(reader.finished()) == {"new-00000001.jsonl"}
    reader.close()


def shipped_without_delete(reader: SpoolReader) -> list[bytes]:
    lines = []
    for chunk in reader.chunks(LIMIT):
        lines += chunk.lines
        reader.done(chunk)
    return lines


def test_half_a_batch(folder: Path, reader: SpoolReader) -> None:
    """The part of a refused batch that the disk took is taken back."""
    writer = SpoolWriter(folder, "worker", LIMIT)
    writer.write(b"a\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24, limits[1]))
    try:
        with pytest.raises(LogUnwritable):
            writer.write(b"refused\nrefused, and longer\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
    assert shipped(reader) == [b"a"]


def test_losses_that_the_disk_does_not_take(folder: Path, reader: SpoolReader) -> None:
    """Losses are written as soon as the disk takes them."""

    class Failing(System):
        fails = False

        def pwrite(self, *given: Any) -> int:
            if self.fails:
                raise OSError(errno.EIO, "it fails")
            return os.pwrite(*given)

    disk = Failing()
    writer = SpoolWriter(folder, "worker", LIMIT, system=disk)
    disk.fails = True
    writer.drop(3)
    assert reader.losses() == {}
    disk.fails = False
    writer.tell_losses()
    assert reader.losses() == {"worker": 3}
    writer.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path}/policyd.db")) as store:
        yield store


@contextmanager
def _without_table(tmp_path: Path, name: str) -> Iterator[None]:
    """The store fails where it needs this table."""
    with closing(sqlite3.connect(tmp_path / "policyd.db", isolation_level=None)) as connection:
        connection.execute(f"ALTER TABLE {name} RENAME TO away")
        yield
        connection.execute(f"ALTER TABLE away RENAME TO {name}")


def test_a_store_that_fails_once(
    tmp_path: Path, store: Store, writer: SpoolWriter, reader: SpoolReader
) -> None:
    """Entries that the store did not take are shipped again at once, not only after the next
    write."""
    writer.write(msgspec.json.encode(record()) + b"\n")
    shipper = Shipper(StoreDestination(store), reader)
    with _without_table(tmp_path, "decisions"), pytest.raises(StoreUnavailable):
        shipper.ship()
    assert shipper.ship() == 1


def test_losses_that_the_store_does_not_take(
    tmp_path: Path, store: Store, folder: Path, reader: SpoolReader
) -> None:
    """Losses stay in the spool until the store takes them, though all processes have ended."""
    ended = SpoolWriter(folder, "ended", LIMIT)
    ended.drop(2)
    ended.close()
    with _without_table(tmp_path, "log_lost"), pytest.raises(StoreUnavailable):
        Shipper(StoreDestination(store), reader).ship()
    Shipper(StoreDestination(store), reader).ship()
    assert store.log.status().lost == 2
    assert not list(folder.glob("*.lost"))


def test_retired_rows_do_not_come_back(
    store: Store, folder: Path, writer: SpoolWriter, reader: SpoolReader
) -> None:
    """A new shipper resumes at the store's position.

    One that does not know whether a transaction was committed finds it out.
    """
    lines = msgspec.json.encode(record()) + b"\n"
    writer.write(lines)
    Shipper(StoreDestination(store), reader).ship()
    assert store.log.expire(START + timedelta(days=1), 10**6) == 1
    step = Step(reader.identity(), next(folder.glob("*.jsonl")).name, 0, len(lines))
    with pytest.raises(PositionMoved):
        store.log.append([record()], step)
    assert Shipper(StoreDestination(store), reader).ship() == 0
    writer.write(lines.replace(b"ada", b"bob"))
    late = Shipper(StoreDestination(store), reader)
    late._is_resumed = True
    reader.resume({})  # As if no answer had come from the store.
    assert late.ship() == 1
    assert store.log.status().decisions == 1
    [(_, counts)] = store.statistics.hours(START, START)
    assert counts.requests == 2


def test_positions_of_other_folders(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that no shipper asks for are deleted in time, and this folder's stay."""
    for name in ("own", "gone"):
        store.log.append([], Step(name, "file", 0, 5))
    store.positions.keep("own")
    assert store.positions.read("gone") == {"file": 5}
    monkeypatch.setattr(positions, "_KEEP", timedelta(0))
    time.sleep(0.01)
    store.positions.keep("own")
    assert (store.positions.read("own"), store.positions.read("gone")) == ({"file": 5}, {})


class Watched(System):
    """A kernel that notes which files hold bytes that were not synced."""

    def __init__(self) -> None:
        self.unsynced: dict[int, int] = {}
        self.closed_unsynced: list[int] = []
        self.segments = 0

    def open(self, path: Any, *given: Any, **named: Any) -> int:
        descriptor = os.open(path, *given, **named)
        if str(path).endswith(".jsonl"):
            self.segments += 1
            self.unsynced[descriptor] = 0
        return descriptor

    def write(self, descriptor: int, content: bytes) -> int:  # type: ignore[override]  # static there
        written = os.write(descriptor, content)
        self.unsynced[descriptor] += written
        return written

    def fdatasync(self, descriptor: int) -> None:  # type: ignore[override]  # static there
        os.fdatasync(descriptor)
        self.unsynced[descriptor] = 0

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        if self.unsynced.pop(descriptor, 0):
            self.closed_unsynced.append(descriptor)


def test_what_is_full_is_synced_too(folder: Path) -> None:
    """A sync includes the files that were replaced since the last one, before they are closed."""
    system = Watched()
    writer = SpoolWriter(folder, "worker", 8000, "always", system)
    for _ in range(7):
        writer.write(b"x" * 999 + b"\n")
    assert system.segments > 3
    writer.sync()
    assert not any(system.unsynced.values())
    writer.close()
    assert system.closed_unsynced == []


def test_threads_that_lock_at_once(folder: Path) -> None:
    """Shipping and retiring begin at once, and neither takes the other for another process."""

    class Slow(System):
        @staticmethod
        def flock(descriptor: int, operation: int) -> None:  # type: ignore[override]  # static there
            time.sleep(0.05)
            fcntl.flock(descriptor, operation)

    with closing(SpoolReader(folder, Slow())) as reader, ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: reader.lock(), range(4)))
