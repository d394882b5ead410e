"""The spool between those who write it and the one who ships it."""

import fcntl
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from policyd import spool
from policyd.errors import LogFull, LogUnwritable, SettingsError, StoreUnavailable
from policyd.record import Record
from policyd.shipper import Shipper
from policyd.spool import SpoolReader, SpoolWriter
from policyd.spool import writer as writing
from policyd.spool.system import System
from policyd.store import LogFilter, Store
from tests.records import record

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
    """Where the disk takes half a batch and the shipper has read that, the next one is not lost."""

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
    """Nothing goes on into a file that nobody can read: there is a new one, or it is refused."""
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
    """The shipper takes no file of one that is about to lock it for one that ended."""
    come_between = ComeBetween(lambda: (reader.forget_losses({}), shipped(reader)))
    writer = SpoolWriter(folder, "worker", LIMIT, system=come_between)
    writer.drop(3)
    writer.write(b"kept\n")
    assert reader.losses() == {"worker": 3}
    assert shipped(reader) == [b"kept"]
    assert come_between.calls == 4, "two files, of which each was deleted once"
    writer.close()


def test_a_shipper_that_stands_still(folder: Path, reader: SpoolReader) -> None:
    """One that was stopped while it looked at a new file keeps its writer waiting for nothing, and
    deletes none but that file when it goes on."""
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
    """Lets others do something before each lock is taken, after its file was made."""

    def __init__(self, others: Callable[[], object]) -> None:
        self._others = others
        self._names: set[int] = set()
        self.calls = 0

    def flock(self, descriptor: int, operation: int) -> None:  # type: ignore[override]
        self.calls += 1
        if self.calls % 2:
            self._others()
        fcntl.flock(descriptor, operation)


def test_a_spool_in_use_for_another_database(folder: Path) -> None:
    """Nobody moves in while policyd ships from there to another database, even if it is empty."""
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
    """It holds up no other one, and is counted once, however often the store was away."""
    place = tmp_path / "store"
    store = Store(f"sqlite:///{place}/policyd.db")
    shipper = Shipper(store, reader)
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
    store.close()


def test_losses_are_told_once(tmp_path: Path, writer: SpoolWriter, reader: SpoolReader) -> None:
    """While nothing more is lost or written, the store is left alone."""
    store = Store(f"sqlite:///{tmp_path}/policyd.db")
    store.migrate()
    shipper = Shipper(store, reader)
    writer.drop(2)
    shipper.ship()
    with closing(sqlite3.connect(f"{tmp_path}/policyd.db")) as busy:
        busy.execute("BEGIN IMMEDIATE")
        shipper.ship()  # It would say that the store is locked.
        busy.rollback()
    writer.drop(1)
    shipper.ship()
    assert store.log.status().lost == 3
    store.close()


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
    """It is never passed, whether or not there is time to look how much there is; what fits to the
    byte is taken."""
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
    """Where not even the reserve helps, the cause is told, and how it is ended."""
    monkeypatch.setattr(writing, "_LOOK", 0.0)
    writer.write(b"before\n")
    writer._spares.close()
    files = list(folder.glob("*.jsonl"))
    with _without_files(0):
        writer.write(b"known all the same\n")
        for file in files:
            file.unlink()
        writer.leave_segment()  # As the next look would find it.
        with pytest.raises(LogUnwritable, match=r"Too many open files.*LimitNOFILE"):
            writer.write(b"refused\n")
    writer.write(b"after\n")
