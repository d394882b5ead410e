"""How a gateway that decides by itself reads the stream of settings."""

import time
from typing import Any

import pytest

from policyd.client import key_stream
from policyd.client.key_stream import KeyStream, Pulse, StreamFault
from policyd.command.worker_clock import WorkerClock
from policyd.engine.settings import ServerDefaults, Setting
from policyd.keys import key_table
from policyd.keys.key_table import KeyTable
from policyd.v1 import local_pb2 as pb

DIGEST, OTHER = b"a" * 32, b"b" * 32
DATABASE = "d" * 32


class Clock:
    """The clocks of this machine and of policyd, which a test moves on."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """All clocks stand still but for what a test moves."""
    clock = Clock()
    monkeypatch.setattr(key_table, "seconds", clock)
    monkeypatch.setattr(time, "time", clock)
    return clock


async def any_database(_: str) -> None:
    """Every database is the right one."""


class Follower:
    """A table, and the stream that fills it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.keys = KeyTable()
        self._pulse = Pulse(WorkerClock(5.0))
        self.begin()

    def begin(self) -> None:
        """Begin another stream."""
        self.stream = KeyStream(self.keys, self._pulse, any_database)

    async def beat(self, revision: int, *, age: float = 0.0, ago: float = 0.0) -> None:
        """A heartbeat, which was sent `ago` seconds ago."""
        told = pb.Heartbeat(
            staleness_seconds=age,
            revision=revision,
            epoch=epoch(revision),
            time=self._clock.now - ago,
            database=DATABASE,
        )
        await self.stream.take(pb.WatchKeysResponse(heartbeat=told))

    async def snapshot(self, revision: int, *digests: bytes, put_back: bool = False) -> bool:
        """A whole snapshot. Returns whether it came into force."""
        begin = pb.SnapshotBegin(put_back=put_back)
        await self.stream.take(pb.WatchKeysResponse(snapshot=begin))
        return await self.change(revision, *digests)

    async def change(
        self, revision: int, *digests: bytes, gone: tuple[bytes, ...] = (), name: str = ""
    ) -> bool:
        """A change to this revision. Returns whether it came into force."""
        shared = pb.SharedSettings(accept=["user"])
        held = [pb.KeyInForce(digest=one, key_id="key_1") for one in digests]
        piece = pb.KeyPiece(shared=[shared], keys=held, gone=gone)
        await self.stream.take(pb.WatchKeysResponse(keys=piece))
        end = pb.SettingsComplete(
            database=DATABASE, revision=revision, epoch=name or epoch(revision)
        )
        return await self.stream.take(pb.WatchKeysResponse(complete=end))


def epoch(revision: int) -> str:
    return f"{revision:032x}"


@pytest.fixture
async def follower(clock: Clock) -> Follower:
    """A follower with the settings of revision 5, which are fresh."""
    made = Follower(clock)
    await made.beat(5)
    assert await made.snapshot(5, DIGEST)
    assert made.keys.staleness() == 0
    return made


async def test_a_snapshot_is_in_force_once_it_is_complete(clock: Clock) -> None:
    """Until its end what was there before stays."""
    made = Follower(clock)
    await made.beat(5)
    piece = pb.KeyPiece(
        shared=[pb.SharedSettings(accept=["user"])],
        keys=[pb.KeyInForce(digest=DIGEST, key_id="key_1")],
    )
    await made.stream.take(pb.WatchKeysResponse(snapshot=pb.SnapshotBegin()))
    await made.stream.take(pb.WatchKeysResponse(keys=piece))
    assert not made.keys.is_known
    assert await made.change(5)
    assert made.keys.settings(DIGEST) is not None


async def test_changes(follower: Follower) -> None:
    """A change adds and takes away, and is in force with its end."""
    assert await follower.change(6, OTHER, gone=(DIGEST,))
    assert follower.keys.revision == 6
    assert follower.keys.settings(DIGEST) is None
    assert follower.keys.settings(OTHER) is not None


async def test_defaults_of_the_same_revision(follower: Follower) -> None:
    """Defaults that came with no change are in force, too: policyd's own settings have no
    revision."""
    setting = pb.NamedPolicySetting(policy="max_tokens")
    end = pb.SettingsComplete(
        database=DATABASE,
        revision=5,
        epoch=epoch(5),
        defaults=pb.DefaultsInForce(policies=[setting]),
    )
    assert not await follower.stream.take(pb.WatchKeysResponse(complete=end))
    assert follower.keys.defaults == ServerDefaults((("max_tokens", Setting()),))
    assert follower.keys.settings(DIGEST) is not None


async def test_settings_age(follower: Follower, clock: Clock) -> None:
    """The settings are as old as the time since the last heartbeat, however old policyd's own
    are."""
    clock.now += 3
    assert follower.keys.staleness() == pytest.approx(3)
    await follower.beat(5, age=1000)
    assert follower.keys.staleness() == pytest.approx(0)
    assert follower.stream.behind == 1000


@pytest.mark.parametrize("revision", [4, 6])
async def test_a_heartbeat_of_another_revision(
    follower: Follower, clock: Clock, revision: int
) -> None:
    """Neither a policyd that lags, nor a change that is yet to come, makes settings fresh."""
    clock.now += 3
    await follower.beat(revision)
    assert follower.keys.staleness() == pytest.approx(3)


async def test_a_change_that_sticks(follower: Follower, clock: Clock) -> None:
    """Settings that came late are as old as the last heartbeat before they were newest."""
    clock.now += 3
    await follower.beat(7)
    await follower.change(6, OTHER)
    assert follower.keys.staleness() == pytest.approx(3)
    await follower.change(7)
    await follower.beat(7)
    assert follower.keys.staleness() == pytest.approx(0)


async def test_a_slow_stream(follower: Follower, clock: Clock) -> None:
    """A heartbeat counts as of when it was sent, and a stream that is very late ends."""
    clock.now += 4
    await follower.beat(5, ago=3)
    assert follower.keys.staleness() == pytest.approx(3)
    clock.now += 4
    with pytest.raises(StreamFault, match="late"):
        await follower.beat(5, ago=key_stream.SILENCE + 1)
    assert follower.keys.staleness() == pytest.approx(7)


async def test_a_stream_that_is_replayed(follower: Follower, clock: Clock) -> None:
    """A replayed stream with earlier heartbeats does not make settings fresh."""
    clock.now += 100
    follower.begin()
    await follower.beat(5, ago=100)
    await follower.beat(5, ago=99)
    assert follower.keys.staleness() == pytest.approx(100)
    assert not await follower.snapshot(4)
    assert follower.keys.settings(DIGEST) is not None


async def test_a_policyd_that_lags(follower: Follower) -> None:
    """The stream keeps a snapshot of a lower revision aside until its changes go beyond."""
    follower.begin()
    await follower.beat(3)
    assert not await follower.snapshot(3, OTHER)
    assert not await follower.change(4)
    assert follower.keys.revision == 5
    assert follower.keys.settings(OTHER) is None
    assert await follower.change(6, DIGEST)
    assert follower.keys.settings(OTHER) is not None


async def test_a_database_that_was_put_back(follower: Follower, clock: Clock) -> None:
    """Where policyd has seen that, its settings are taken though their revision is lower, and are
    as fresh as its heartbeats."""
    clock.now += 10
    await follower.beat(3)
    clock.now += 2
    assert await follower.snapshot(3, OTHER, put_back=True)
    assert follower.keys.revision == 3
    assert follower.keys.settings(DIGEST) is None
    assert follower.keys.staleness() == pytest.approx(2)


@pytest.mark.parametrize(("revision", "name"), [(4, ""), (5, "f" * 32)])
async def test_changes_that_go_back(follower: Follower, revision: int, name: str) -> None:
    """Changes that go back end the stream, and none of them comes into force."""
    with pytest.raises(StreamFault, match="go back"):
        await follower.change(revision, OTHER, name=name)
    assert follower.keys.settings(OTHER) is None


@pytest.mark.parametrize(
    "message",
    [
        {"heartbeat": pb.Heartbeat(database=DATABASE, staleness_seconds=float("nan"))},
        {"heartbeat": pb.Heartbeat(database=DATABASE, staleness_seconds=-1)},
        {"keys": pb.KeyPiece(keys=[pb.KeyInForce(digest=DIGEST, shared=1)])},
        {"complete": pb.SettingsComplete(database="e" * 32, revision=9)},
    ],
)
async def test_messages_that_cannot_be(follower: Follower, message: dict[str, Any]) -> None:
    """Messages that cannot be right end the stream."""
    with pytest.raises(StreamFault):
        await follower.stream.take(pb.WatchKeysResponse(**message))
    assert follower.keys.revision == 5
