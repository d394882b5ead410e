"""The spool as the shipper reads it: positions, chunks, losses, and what it keeps in the folder."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from policyd.decision_log import spool
from policyd.decision_log.spool import Chunk, SpoolReader, SpoolWriter
from policyd.decision_log.spool.system import System
from tests.support.open_files import open_files

LIMIT = 2**20
START = 1_767_225_600
"""Seconds since 1970."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spool.prepare(tmp_path / "spool", "database")
    return tmp_path / "spool"


@pytest.fixture
def reader(folder: Path) -> Iterator[SpoolReader]:
    with closing(SpoolReader(folder)) as reader:
        assert reader.lock()
        yield reader


def write(folder: Path, process: str, *lines: bytes, lost: int = 0) -> SpoolWriter:
    writer = SpoolWriter(folder, process, LIMIT)
    for line in lines:
        writer.write(line + b"\n")
    writer.drop(lost)
    return writer


def leave(folder: Path, process: str, *lines: bytes, lost: int = 0) -> str:
    """Leave a segment, as an ended process does. Returns its name."""
    write(folder, process, *lines, lost=lost).close()
    [name] = (file.name for file in folder.glob(f"{process}-*.jsonl"))
    return name


def read(reader: SpoolReader, size: int = LIMIT) -> list[Chunk]:
    chunks = []
    for chunk in reader.chunks(size):
        reader.done(chunk)
        chunks.append(chunk)
    return chunks


def test_no_other_user_may_read_it(tmp_path: Path) -> None:
    """Folder and files are for their owner alone, whatever the process's umask."""
    before = os.umask(0)
    try:
        folder = tmp_path / "spool"
        spool.prepare(folder, "database")
        leave(folder, "worker", b"a", lost=1)
        with closing(SpoolReader(folder)) as reader:
            assert reader.lock()
            reader.identity()
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert len(modes) == 5
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_one_that_ships(folder: Path) -> None:
    """One reader ships until it is closed; another that tries keeps no file open."""
    one = SpoolReader(folder)
    assert one.lock()
    assert one.lock()
    with closing(SpoolReader(folder)) as other:
        before = open_files()
        assert not other.lock()
        assert open_files() == before
        one.close()
        assert other.lock()


def test_chunks(folder: Path, reader: SpoolReader) -> None:
    """A chunk has whole lines; the last one of a file that is written ends the round."""
    with closing(write(folder, "worker", b"aaaa", b"bbbb", b"cccc")) as writer:
        one, two = read(reader, 12)
        assert (one.lines, one.start, one.end, one.is_last) == ([b"aaaa", b"bbbb"], 0, 10, False)
        assert (two.lines, two.start, two.end, two.is_last) == ([b"cccc"], 10, 15, True)
        assert reader.finished() == {}
        writer.write(b"dddd\neeee\n")
        [three] = read(reader, 10)
        assert (three.lines, three.is_last) == ([b"dddd", b"eeee"], False), "there may be more"
        assert reader.finished() == {}
    assert read(reader) == []
    assert reader.finished() == {one.name: 25}


def test_a_line_longer_than_a_chunk(folder: Path, reader: SpoolReader) -> None:
    """A line that no chunk holds is passed over in pieces, and the lines behind it are read."""
    leave(folder, "worker", b"x" * 25, b"a")
    assert [chunk.lines for chunk in read(reader, 10)] == [
        *([b"x" * 10], [b"x" * 10], [b"xxxxx", b"a"]),
    ]


def test_positions(folder: Path, reader: SpoolReader) -> None:
    """Reading goes on where the store's positions end; those of files that are gone are named."""
    name = leave(folder, "worker", b"a", b"b")
    read(reader)
    assert reader.finished() == {name: 4}
    assert reader.resume({name: 2, "gone-00000001.jsonl": 7}) == {"gone-00000001.jsonl"}
    assert reader.finished() == {}
    assert [chunk.lines for chunk in read(reader)] == [[b"b"]]
    (folder / name).unlink()
    read(reader)
    assert reader.finished() == {name: 4}, "its position may be forgotten"


def test_a_file_that_is_gone_before_its_end(folder: Path, reader: SpoolReader) -> None:
    """A file that another program deletes is finished where it was read to."""
    name = leave(folder, "worker", b"a", b"b")
    reader.resume({name: 2})
    (folder / name).unlink()
    assert read(reader) == []
    assert reader.finished() == {name: 2}


def test_a_round_that_is_left_early(folder: Path, reader: SpoolReader) -> None:
    """What was finished stays so if the next round does not come to it."""
    name = leave(folder, "other", b"a")
    read(reader)
    leave(folder, "new", b"b")
    assert next(reader.chunks(LIMIT)).lines == [b"b"]
    assert reader.finished() == {name: 2}


class Counting(System):
    """Counts the syncs."""

    def __init__(self) -> None:
        self.syncs = 0

    def fsync(self, descriptor: int) -> None:  # type: ignore[override]  # static there
        self.syncs += 1
        os.fsync(descriptor)


def test_deleting(folder: Path) -> None:
    """A file is deleted at its end, half a line not counted. The deletion is durable."""
    system = Counting()
    one, half, more = (leave(folder, process, b"a") for process in ("one", "half", "more"))
    with (folder / half).open("ab") as file:
        file.write(b"hal")
    with (folder / more).open("ab") as file:
        file.write(b"b\n")
    with closing(SpoolReader(folder, system)) as reader:
        assert reader.lock()
        assert reader.delete({more: 2}) == set()
        assert system.syncs == 0
        assert reader.delete({one: 2, half: 2, more: 2, "gone.jsonl": 5}) == {
            *(one, half, "gone.jsonl"),
        }
        assert system.syncs == 1
        assert [file.name for file in folder.glob("*.jsonl")] == [more]
        read(reader)
        assert reader.finished() == {more: 4}
        assert reader.delete(reader.finished()) == {more}
        assert read(reader) == []
        assert reader.finished() == {}


def test_a_file_with_a_long_line(folder: Path, reader: SpoolReader) -> None:
    """A file is not deleted where so much stands behind its position that it is no half line."""
    name = leave(folder, "worker", b"a")
    with (folder / name).open("ab") as file:
        file.write(bytes(2**20))
    assert reader.delete({name: 2}) == set()


def test_losses(folder: Path, reader: SpoolReader) -> None:
    """The largest of a process's counts of losses counts, and a damaged count does not."""
    leave(folder, "ended", lost=2)
    leave(folder, "lossless")
    (folder / "ended-00000009.lost").write_bytes(b"%020d" % 3)
    (folder / "ended-00000008.lost").write_bytes(b"%020d" % 1)
    (folder / "damaged-00000001.lost").write_bytes(b"12" + bytes(18))
    with closing(write(folder, "running", lost=5)):
        assert reader.losses() == {"ended": 3, "running": 5}
        assert reader.ended() == {"ended", "lossless", "damaged"}
        reader.forget_losses({"ended": 2, "running": 5, "damaged": 0})
        assert reader.losses() == {"ended": 3, "running": 5}
        assert reader.ended() == {"ended"}
        reader.forget_losses({"ended": 3})
        assert reader.losses() == {"running": 5}
        assert reader.ended() == set()


def test_a_loss_that_the_store_does_not_have(folder: Path, reader: SpoolReader) -> None:
    """A loss of one entry stays until the store has that process's count."""
    leave(folder, "ended", lost=1)
    reader.forget_losses({})
    assert reader.losses() == {"ended": 1}


class Ghosts(System):
    """A folder of which another program deletes two files once they were listed."""

    @staticmethod
    def listdir(folder: int) -> list[str]:
        return ["gone-00000001.jsonl", "gone-00000002.lost", *os.listdir(folder)]

    @staticmethod
    def stat(name: str, dir_fd: int) -> os.stat_result:  # type: ignore[override]  # static there
        return os.stat("database" if name.startswith("gone") else name, dir_fd=dir_fd)


def test_files_that_are_deleted_meanwhile(folder: Path) -> None:
    """A file that is gone once it is to be read is passed over."""
    name = leave(folder, "one", b"a", lost=1)
    with closing(SpoolReader(folder, Ghosts())) as reader:
        assert reader.lock()
        os.utime(folder / name, (START, START))
        assert reader.waiting()[1] == START
        assert [chunk.name for chunk in read(reader)] == [name]
        assert reader.left() == 2
        assert reader.losses() == {"one": 1}
        assert reader.ended() == {"one"}
        reader.forget_losses({"one": 1})
        assert reader.losses() == {}


def entry(time: float) -> bytes:
    """The beginning of a decision that was made at this time."""
    return b'["D","%012x%020x"]' % (int(time * 1000), 1)


def test_what_waits(folder: Path, reader: SpoolReader) -> None:
    """All that the store does not have waits, since the oldest decision at a position was made."""
    before = time.time()
    size, oldest = reader.waiting()
    assert size == 0
    assert before <= oldest <= time.time()
    one = leave(folder, "one", entry(START + 5), entry(START + 3))
    leave(folder, "other", entry(START + 4))
    for file in folder.glob("*.jsonl"):
        os.utime(file, (1, 1))
    length = len(entry(START)) + 1
    assert reader.waiting() == (3 * length, START + 4), "the first decision of the other file"
    reader.resume({one: length})
    assert reader.waiting() == (2 * length, START + 3)
    reader.resume({one: 2 * length})
    assert reader.waiting() == (length, START + 4), "nothing waits in the one file"


@pytest.mark.parametrize("line", [b"no decision", b" " * 40 + entry(START)], ids=["none", "late"])
def test_what_waits_and_has_no_time(folder: Path, reader: SpoolReader, line: bytes) -> None:
    """Where a line does not begin with a decision's ID, it waits since its file was written."""
    name = leave(folder, "one", line)
    os.utime(folder / name, (START, START + 7))
    assert reader.waiting() == (len(line) + 1, START + 7)


def test_what_waits_for_the_next_start(folder: Path, tmp_path: Path) -> None:
    """The entries of ended processes wait, unless a reader ships them now."""
    assert spool.left(tmp_path / "none") == 0
    leave(folder, "one", b"a")
    leave(folder, "other", b"bc")
    with closing(write(folder, "running", b"def")):
        before = open_files()
        assert spool.left(folder) == 5
        assert open_files() == before
        with closing(SpoolReader(folder)) as reader:
            assert reader.lock()
            assert spool.left(folder) == 0


def identity_of(folder: Path, system: System | None = None) -> str:
    with closing(SpoolReader(folder, system)) as reader:
        assert reader.lock()
        assert reader.identity() == reader.identity()
        return reader.identity()


def test_the_identity(folder: Path, tmp_path: Path) -> None:
    """A folder keeps its identity, which is 16 hexadecimal digits and no other folder's."""
    spool.prepare(tmp_path / "other", "database")
    identity = identity_of(folder)
    assert len(identity) == 16
    assert int(identity, 16)
    assert identity_of(folder) == identity
    assert identity_of(tmp_path / "other") != identity


@pytest.mark.parametrize("found", [b"", b"0123", b"0123456789abcdeg", b"f" * 17, b"f" * 100])
def test_a_damaged_identity(folder: Path, found: bytes) -> None:
    """An identity that was not written as a whole is replaced, by one that is kept."""
    (folder / "identity").write_bytes(found)
    identity = identity_of(folder)
    assert identity.encode() != found
    assert (folder / "identity").read_bytes() == identity.encode()
    assert identity_of(folder) == identity


class Failing(System):
    """A disk that takes nothing."""

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, *_: object) -> int:
        raise OSError(self._number, os.strerror(self._number))


def test_an_identity_that_the_disk_does_not_take(folder: Path) -> None:
    """On a full disk shipping begins under an identity that is not kept; no other error passes."""
    before = open_files()
    assert identity_of(folder, Failing(errno.ENOSPC)) != identity_of(folder)
    (folder / "identity").unlink()
    with pytest.raises(OSError, match="Input/output error"):
        identity_of(folder, Failing(errno.EIO))
    assert open_files() == before
