"""Shipping as its destination sees it: what it is asked, handed and told, and when.

test_spool.py ships to a store; here a destination notes each call.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from policyd.decision_log.shipper import PAUSE, Shipper, pause_after
from policyd.decision_log.spool import Chunk, SpoolReader, SpoolWriter
from policyd.errors import PositionMoved, StoreUnavailable

LIMIT = 2**20


class Noted:
    """A destination in memory that notes what it is called for."""

    def __init__(self) -> None:
        self.spools: set[str] = set()
        self.ends: dict[str, int] = {}
        self.lines: list[bytes] = []
        self.lost: dict[str, int] = {}
        self.calls: list[str] = []
        self.failing = ""

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.failing:
            raise StoreUnavailable("it is away")

    def positions(self, spool: str) -> dict[str, int]:
        self.spools.add(spool)
        self._note("positions")
        return dict(self.ends)

    def append(self, spool: str, chunk: Chunk) -> int:
        self.spools.add(spool)
        self._note("append")
        if self.ends.get(chunk.name, 0) != chunk.start:
            raise PositionMoved("it is elsewhere")
        self.ends[chunk.name] = chunk.end
        self.lines += chunk.lines
        return len(chunk.lines)

    def forget(self, spool: str, files: Iterable[str]) -> None:
        self.spools.add(spool)
        self._note("forget")
        for file in files:
            del self.ends[file]

    def lose(self, lost: Mapping[str, int]) -> None:
        self._note("lose")
        self.lost |= lost

    def lost_by(self, processes: Iterable[str]) -> dict[str, int]:
        self._note("lost_by")
        return {name: self.lost[name] for name in processes if name in self.lost}

    @property
    def told(self) -> list[str]:
        """The calls since this was last asked."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def noted() -> Iterator[Noted]:
    noted = Noted()
    yield noted
    assert len(noted.spools) <= 1, "it is one spool's shipper"
    assert None not in noted.spools


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[SpoolReader]:
    with closing(SpoolReader(tmp_path)) as reader:
        yield reader


@pytest.fixture
def shipper(noted: Noted, reader: SpoolReader) -> Shipper:
    return Shipper(noted, reader)


def leave(folder: Path, process: str, *lines: bytes, lost: int = 0) -> str:
    """Write these lines as a process that has ended. Returns the name of its segment."""
    with closing(SpoolWriter(folder, process, LIMIT)) as writer:
        for line in lines:
            writer.write(line + b"\n")
        writer.drop(lost)
    [name] = (file.name for file in folder.glob(f"{process}-*.jsonl"))
    return name


def files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.suffix in (".jsonl", ".lost")]


def test_pauses() -> None:
    """Where few entries come, the next look is soon; where many come, they gather for a second."""
    assert (pause_after(0), pause_after(200), pause_after(201)) == (PAUSE, PAUSE, 1.0)


def test_a_round(tmp_path: Path, noted: Noted, shipper: Shipper) -> None:
    """All that waits is shipped, in a chunk for each file. A file is deleted once the destination
    has said again that it has all of it, and its position is forgotten after that."""
    leave(tmp_path, "one", b"a", b"b")
    leave(tmp_path, "two", b"c")
    assert shipper.ship() == 3
    assert noted.lines == [b"a", b"b", b"c"]
    assert noted.told == ["positions", "append", "append", "positions", "forget"]
    assert files(tmp_path) == []
    assert noted.ends == {}
    assert shipper.ship() == 0
    assert noted.told == [], "there was nothing new"
    leave(tmp_path, "three", b"d")
    assert shipper.ship() == 1
    assert noted.told == ["append", "positions", "forget"]


def test_one_that_does_not_ship(tmp_path: Path, noted: Noted, reader: SpoolReader) -> None:
    """While another process ships, nothing is shipped."""
    leave(tmp_path, "one", b"a")
    assert reader.lock()
    with closing(SpoolReader(tmp_path)) as other:
        assert Shipper(noted, other).ship() == 0
    assert noted.told == []


def test_segments_without_entries(tmp_path: Path, noted: Noted, shipper: Shipper) -> None:
    """An empty segment is deleted without a question, as no position is known of it."""
    leave(tmp_path, "empty")
    assert shipper.ship() == 0
    assert noted.told == ["positions"], "where to go on"
    assert files(tmp_path) == []
    leave(tmp_path, "empty")
    leave(tmp_path, "one", b"a")
    assert shipper.ship() == 1
    assert noted.told == ["append", "positions", "forget"]
    assert files(tmp_path) == []
    assert shipper.ship() == 0
    assert noted.told == [], "the destination was where it was expected"


def test_files_that_were_gone_before(tmp_path: Path, noted: Noted, shipper: Shipper) -> None:
    """Positions of files that are gone are forgotten, and those that were not, at the next look."""
    leave(tmp_path, "one", b"a")
    noted.ends = {"gone-00000001.jsonl": 5}
    noted.failing = "forget"
    with pytest.raises(StoreUnavailable):
        shipper.ship()
    assert noted.ends.keys() >= {"gone-00000001.jsonl"}
    noted.failing = ""
    assert shipper.ship() == 0
    assert noted.ends == {}
    noted.calls.clear()
    shipper.ship()
    assert noted.told == []


@pytest.mark.parametrize("end", [0, 2], ids=["none of it", "half of it"])
def test_a_destination_that_was_restored(
    tmp_path: Path, noted: Noted, shipper: Shipper, end: int
) -> None:
    """A file of which the destination has less than before stays, and is shipped again from where
    the destination is; a file of which it has all is deleted."""
    with closing(SpoolWriter(tmp_path, "one", LIMIT)) as writer:
        writer.write(b"a\nb\n")
        assert shipper.ship() == 2
    [one] = noted.ends
    noted.ends = {one: end} if end else {}
    leave(tmp_path, "two", b"c")
    assert shipper.ship() == 1
    assert files(tmp_path) == [one]
    noted.lines.clear()
    assert shipper.ship() == 2 - end // 2
    assert noted.lines == [b"a", b"b"][end // 2 :]
    assert files(tmp_path) == []


def test_a_position_that_has_moved(
    tmp_path: Path,
    noted: Noted,
    reader: SpoolReader,
    shipper: Shipper,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the destination is elsewhere, shipping goes on from there, and the log tells so."""
    with closing(SpoolWriter(tmp_path, "one", LIMIT)) as writer:
        writer.write(b"a\n")
        assert shipper.ship() == 1
        noted.ends.clear()
        writer.write(b"b\n")
        assert shipper.ship() == 2
    assert noted.lines == [b"a", b"a", b"b"]
    assert caplog.messages == [
        "shipping goes on from the destination's position in the spool: it is elsewhere"
    ]


def test_losses(tmp_path: Path, noted: Noted, shipper: Shipper) -> None:
    """Losses are told when they have changed. The count of an ended process is deleted once the
    destination has said that it has as many."""
    with closing(SpoolWriter(tmp_path, "one", LIMIT)) as writer:
        writer.drop(2)
        shipper.ship()
        assert noted.told == ["positions", "lose"]
        shipper.ship()
        assert noted.told == []
        writer.drop(1)
        shipper.ship()
        assert noted.told == ["lose"]
    assert noted.lost == {"one": 3}
    shipper.ship()
    assert noted.told == ["lost_by"]
    assert files(tmp_path) == []


def test_losses_that_the_destination_has_no_more(
    tmp_path: Path, noted: Noted, shipper: Shipper
) -> None:
    """If the destination was restored, it is told again of losses whose processes have ended."""
    with closing(SpoolWriter(tmp_path, "one", LIMIT)) as writer:
        writer.drop(1)
        shipper.ship()
    noted.lost = {}
    shipper.ship()
    assert noted.lost == {}
    [count] = files(tmp_path)
    assert count.endswith(".lost")
    shipper.ship()
    assert noted.lost == {"one": 1}
    assert files(tmp_path) == []


def test_processes_that_lost_nothing(tmp_path: Path, noted: Noted, shipper: Shipper) -> None:
    """The count of an ended process that lost nothing is deleted without a question, beside one of
    which the destination has all."""
    leave(tmp_path, "one")
    shipper.ship()
    assert noted.told == ["positions"]
    assert files(tmp_path) == []
    leave(tmp_path, "one")
    leave(tmp_path, "two", lost=1)
    shipper.ship()
    assert noted.told == ["lose", "lost_by"]
    assert files(tmp_path) == []
    shipper.ship()
    assert noted.told == ["lose"], "nothing is lost by the processes that are left"
    shipper.ship()
    assert noted.told == []
