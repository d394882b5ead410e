"""The spool as a worker writes it: when a new segment begins, and what a failed write leaves."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from policyd.decision_log.spool import SpoolReader, SpoolWriter
from policyd.decision_log.spool.system import System
from policyd.errors import LogFull, LogUnwritable

LIMIT = 8000
"""Bytes: a segment ends at an eighth of them."""


class Disk(System):
    """A disk of which calls fail while the test wants, after it took some bytes of a write. It
    closes nothing that was not opened here."""

    def __init__(self) -> None:
        self.failing: frozenset[str] = frozenset()
        self.number = errno.EIO
        self.taken = 0
        self.pwrites = 0
        self.looks = 0
        self.opened: set[int] = set()

    def _check(self, call: str) -> None:
        if call in self.failing:
            raise OSError(self.number, os.strerror(self.number))

    def open(self, *given: Any, **named: Any) -> int:
        self._check("open")
        self.opened.add(descriptor := os.open(*given, **named))
        return descriptor

    def dup(self, descriptor: int) -> int:
        self.opened.add(copy := os.dup(descriptor))
        return copy

    def close(self, descriptor: int) -> None:
        self.opened.remove(descriptor)
        os.close(descriptor)

    def listdir(self, folder: int) -> list[str]:  # type: ignore[override]  # static there
        self.looks += 1
        self._check("listdir")
        return os.listdir(folder)

    def write(self, descriptor: int, content: bytes) -> int:  # type: ignore[override]  # static there
        if "write" in self.failing and self.taken:
            content, self.taken = content[: self.taken], 0
            return os.write(descriptor, content)
        self._check("write")
        return os.write(descriptor, content)

    def pwrite(self, *given: Any) -> int:
        self.pwrites += 1
        self._check("pwrite")
        return os.pwrite(*given)

    def ftruncate(self, *given: Any) -> None:
        self._check("ftruncate")
        os.ftruncate(*given)

    def unlink(self, *given: Any, **named: Any) -> None:
        self._check("unlink")
        os.unlink(*given, **named)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    assert not disk.opened, "a writer was closed, and left a file open"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(tmp_path: Path, disk: Disk, clock: Clock) -> Iterator[SpoolWriter]:
    with closing(SpoolWriter(tmp_path, "a", LIMIT, system=disk, clock=clock)) as writer:
        yield writer


def segments(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.jsonl"))}


def fail(writer: SpoolWriter, disk: Disk, *calls: str, taken: int = 0) -> None:
    """Have a write fail, of which the disk takes some bytes before."""
    disk.failing, disk.taken = frozenset(("write", *calls)), taken
    with pytest.raises(LogUnwritable, match="cannot be written"):
        writer.write(b"refused\n")
    disk.failing = frozenset()


def test_full_segments(tmp_path: Path, writer: SpoolWriter) -> None:
    """A segment is replaced once it has its size. A batch stands in one of them."""
    batches = [b"x" * 998 + b"\n", b"y\n", b"z\n" * 600]
    for batch in (*batches, b"last\n"):
        writer.write(batch)
    assert list(segments(tmp_path).values()) == [batches[0] + batches[1], batches[2], b"last\n"]
    assert writer.written == sum(map(len, batches)) + 5


def test_names(tmp_path: Path, writer: SpoolWriter) -> None:
    """Each file is named by its process and a number of eight digits."""
    for _ in range(3):
        writer.write(b"x" * 999 + b"\n")
    names = [file.name for file in tmp_path.iterdir()]
    assert len(names) == 4
    assert all(re.fullmatch(r"a-[0-9]{8}\.(jsonl|lost)", name) for name in names), names


@pytest.mark.parametrize("given", [{}, {"sync": "never"}], ids=["default", "never"])
def test_a_replaced_segment_is_closed(tmp_path: Path, disk: Disk, given: dict[str, Any]) -> None:
    """A writer that syncs nothing has one segment open, however many it has begun."""
    with closing(SpoolWriter(tmp_path, "a", LIMIT, system=disk, **given)) as writer:
        before = len(disk.opened)
        for _ in range(3):
            writer.write(b"x" * 999 + b"\n")
        assert len(segments(tmp_path)) == 3
        assert len(disk.opened) == before


def test_a_write_that_fails_in_an_empty_segment(
    tmp_path: Path, writer: SpoolWriter, disk: Disk
) -> None:
    """The segment stays, where the disk took nothing: on a full disk a new one may not be had."""
    before = segments(tmp_path)
    for _ in range(3):
        fail(writer, disk)
    assert segments(tmp_path) == before
    writer.write(b"a\n")
    assert list(segments(tmp_path).values()) == [b"a\n"]
    assert segments(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("calls", [(), ("unlink",)], ids=["removed", "left"])
@pytest.mark.parametrize("taken", [1, 5])
def test_half_a_batch_in_an_empty_segment(
    tmp_path: Path, writer: SpoolWriter, disk: Disk, taken: int, calls: tuple[str, ...]
) -> None:
    """A segment that held even a byte of a failed batch is removed if it can be, and written no
    more, because a reader may have seen it."""
    [old] = segments(tmp_path)
    fail(writer, disk, *calls, taken=taken)
    writer.write(b"a\n")
    found = segments(tmp_path)
    assert found.pop(old, None) == (b"" if calls else None)
    assert list(found.values()) == [b"a\n"]


@pytest.mark.parametrize("calls", [(), ("ftruncate",), ("unlink",), ("ftruncate", "unlink")])
@pytest.mark.parametrize("taken", [0, 5])
def test_a_write_that_fails_behind_others(
    tmp_path: Path, writer: SpoolWriter, disk: Disk, calls: tuple[str, ...], taken: int
) -> None:
    """A new segment follows, even where nothing else succeeds: the shipper can then make room by
    deleting this one. What was written before is kept, and no refused line is read.
    """
    writer.write(b"a\n")
    fail(writer, disk, *calls, taken=taken)
    writer.write(b"b\n")
    found = segments(tmp_path)
    assert len(found) == 2
    assert found.popitem()[1] == b"b\n"
    writer.close()
    with closing(SpoolReader(tmp_path)) as reader:
        assert reader.lock()
        lines: list[bytes] = []
        for chunk in reader.chunks(1000):
            lines += chunk.lines
            reader.done(chunk)
    assert lines == [b"a", b"b"]


def test_losses_on_the_disk(tmp_path: Path, writer: SpoolWriter, disk: Disk) -> None:
    """Losses are written where they changed, in 20 digits, and to a new file if theirs is gone."""
    [file] = tmp_path.glob("*.lost")
    assert file.read_bytes() == b"%020d" % 0
    before = disk.pwrites
    writer.tell_losses()
    assert disk.pwrites == before
    writer.drop(3)
    assert file.read_bytes() == b"%020d" % 3
    before = disk.pwrites
    writer.tell_losses()
    assert disk.pwrites == before
    file.unlink()
    writer.drop(1)
    [again] = tmp_path.glob("*.lost")
    assert again.name != file.name
    assert again.read_bytes() == b"%020d" % 4


def test_how_full_it_is(tmp_path: Path, writer: SpoolWriter, clock: Clock) -> None:
    """All that the folder holds counts, whichever process has written it, to the byte."""
    with closing(SpoolWriter(tmp_path, "other", LIMIT)) as other:
        other.write(b"x" * 999 + b"\n")
    writer.write(b"x" * 999 + b"\n")
    for share, is_fuller in ((0.2, True), (0.25, False), (0.3, False)):
        clock.now += 1
        assert writer.is_fuller_than(share) is is_fuller
    with pytest.raises(LogFull, match="--spool-limit"):
        writer.write(b"x" * 6001)
    writer.write(b"x" * 5999 + b"\n")


@pytest.mark.parametrize(
    ("passed", "length", "looks"),
    [(0.95, 1, 0), (1.05, 1, 1), (0.095, LIMIT, 0), (0.105, LIMIT, 1)],
)
def test_how_often_it_looks(
    writer: SpoolWriter, disk: Disk, clock: Clock, passed: float, length: int, looks: int
) -> None:
    """A write looks through the folder once a second, and ten times where it finds no room."""
    writer.write(b"a\n")
    before = disk.looks
    clock.now += passed
    with suppress(LogFull):
        writer.write(b"x" * length)
    assert disk.looks - before == looks


AT_THE_DISK = "see to the folder and the disk that --spool names"


def test_a_folder_that_cannot_be_looked_through(
    tmp_path: Path, disk: Disk, writer: SpoolWriter, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells so once, and once more if it could be looked through meanwhile. Entries are
    written all the same."""
    line = (
        f"the spool cannot be looked through: {AT_THE_DISK} (Input/output error), or serve with "
        "--log-error drop"
    )
    for fails, lines in ((True, 1), (True, 1), (False, 1), (True, 2), (True, 2), (False, 2)):
        disk.failing = frozenset({"listdir"} if fails else ())
        clock.now += 2
        writer.write(b"a\n")
        assert caplog.messages == [line] * lines
    assert list(segments(tmp_path).values()) == [b"a\n" * 6]


def test_a_start_on_a_full_disk(
    tmp_path: Path, disk: Disk, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A start on a full disk is told in the log, and entries are refused until there is room."""
    disk.failing, disk.number = frozenset({"open"}), errno.ENOSPC
    with closing(SpoolWriter(tmp_path, "a", LIMIT, system=disk, clock=clock)) as writer:
        assert caplog.messages == [
            f"the spool has no room yet: {AT_THE_DISK} (No space left on device), or serve with "
            "--log-full drop"
        ]
        assert writer.is_doubtful()
        with pytest.raises(LogFull, match=r"cannot begin a new file: .*No space left on device"):
            writer.write(b"refused\n")
        disk.failing = frozenset()
        writer.write(b"a\n")
        assert not writer.is_doubtful()
    assert list(segments(tmp_path).values()) == [b"a\n"]


@pytest.mark.parametrize(("rest", "is_doubtful"), [(4096, False), (4095, True)])
def test_when_it_is_in_doubt(writer: SpoolWriter, rest: int, is_doubtful: bool) -> None:
    """The next entry is in doubt once there is less room than a trial takes."""
    writer.write(b"x" * (LIMIT - rest))
    assert writer.is_doubtful() is is_doubtful


def test_trying_out_changes_nothing(writer: SpoolWriter, tmp_path: Path) -> None:
    """What is written to try the spool out is taken back, from the file and from the counts."""
    writer.write(b"x" * 99 + b"\n")
    [segment] = tmp_path.glob("*.jsonl")
    before, content = writer.written, segment.read_bytes()
    for _ in range(3):
        writer.try_out()
    assert (writer.written, segment.read_bytes()) == (before, content)


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_trying_out_takes_no_room(writer: SpoolWriter, more: int, fits: bool) -> None:
    """After a trial the spool takes as many bytes as before it, and not one more."""
    writer.write(b"x" * 99 + b"\n")
    writer.try_out()
    rest = b"x" * (LIMIT - 100 + more)
    if fits:
        writer.write(rest)
        assert writer.is_doubtful()
        return
    full = "is full (--spool-limit), as the database does not take it: see to the database, or"
    with pytest.raises(LogFull, match=re.escape(full)):
        writer.write(rest)


def test_a_trial_that_stays(writer: SpoolWriter, tmp_path: Path, disk: Disk) -> None:
    """If a trial cannot be taken back, the next entries go into another file."""
    writer.write(b"1\n")
    disk.failing = frozenset({"ftruncate"})
    with pytest.raises(LogUnwritable, match=r"cannot be written: .*Input/output error"):
        writer.try_out()
    assert writer.is_doubtful()
    disk.failing = frozenset()
    writer.write(b"2\n")
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


class SlowDisk(System):
    """A disk that takes three bytes of each write."""

    def write(self, descriptor: int, content: bytes) -> int:  # type: ignore[override]  # static there
        return os.write(descriptor, content[:3])


def test_writes_that_take_a_part(tmp_path: Path) -> None:
    """A batch of which each write takes a part is written whole, and counted once."""
    lines = b"".join(b"[%d]\n" % number for number in range(30))
    with closing(SpoolWriter(tmp_path, "a", LIMIT, system=SlowDisk())) as writer:
        before = writer.written
        writer.write(lines)
        assert writer.written == before + len(lines)
        [segment] = tmp_path.glob("*.jsonl")
        assert segment.read_bytes() == lines
