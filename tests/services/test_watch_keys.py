"""WatchKeys: what gateways that decide by themselves are sent, and what they are not."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from policyd.client import NoDecision, PolicyClient
from policyd.command.address import Address
from policyd.engine.settings import KeySettings, ServerDefaults, Setting
from policyd.engine.states import Mode
from policyd.policies import TABLE
from policyd.server.server import Server
from policyd.services import followers, key_feed, local_messages, watch_keys
from policyd.services.local_messages import State
from policyd.settings import ServerSettings
from policyd.store import Store
from policyd.v1 import local_pb2 as pb
from policyd.v1 import policy_pb2
from tests.support.databases import open_store
from tests.support.followers import (
    TOKEN,
    FakeFollower,
    bearer,
    rejection,
    stub,
    token_file,
)
from tests.support.running import worker

LOCAL = Address("127.0.0.1", 0)
CODE = grpc.StatusCode


def made(folder: Path, **changes: Any) -> ServerSettings:
    given: dict[str, Any] = {
        "database_url": f"sqlite:///{folder}/policyd.db",
        "grpc": LOCAL,
        "admin": LOCAL,
        "admin_token_file": folder / "admin-token",
        "local_token_file": token_file(folder),
        "spool": folder / "spool",
        "poll_interval": 0.05,
        "grace": 2.0,
        "drain": 0.0,
    }
    return ServerSettings(**given | changes)


class Running:
    """A server of a store, and a channel to it."""

    def __init__(self, server: Server, store: Store, settings: ServerSettings) -> None:
        self.server = server
        self.store = store
        self.settings = settings
        self.channel = grpc.aio.insecure_channel(str(server.grpc))

    async def follower(self, before: FakeFollower | None = None, **given: Any) -> FakeFollower:
        """One that has begun to follow."""
        follower = FakeFollower(before)
        await follower.follow(self.channel, **given)
        return follower

    async def up_to_date(self, before: FakeFollower | None = None) -> FakeFollower:
        """One that has all settings."""
        follower = await self.follower(before)
        await follower.until(lambda: follower.state == self.state())
        return follower

    def state(self) -> State:
        """That of the database."""
        changes = self.store.keys.changes_since(0)
        return State(changes.revision, changes.epoch)


@asynccontextmanager
async def serving(settings: ServerSettings, store: Store) -> AsyncIterator[Running]:
    async with worker(settings) as server:
        running = Running(server, store, settings)
        yield running
        await running.channel.close()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    settings = made(tmp_path)
    store = open_store(settings.database_url)
    async with serving(settings, store) as found:
        yield found
    store.close()


def _has(follower: FakeFollower, running: Running) -> bool:
    return follower.state == running.state()


def _default(follower: FakeFollower) -> int | None:
    """The mode that the follower was told to be the default."""
    told = follower.defaults
    return told.policies[0].setting.mode if told else None


def digests(store: Store) -> dict[bytes, str]:
    """What is in force, as the store has it."""
    found = store.keys.changes_since(0).changed
    return {one.digest: one.settings.key_id for one in found if one.settings}


async def test_a_snapshot_and_changes(running: Running) -> None:
    """A follower with nothing gets all keys and the defaults, and then each change."""
    store = running.store
    for number in range(3):
        store.keys.create(f"key {number}", TABLE.with_original(Mode.AUDIT))
    follower = await running.up_to_date()
    assert follower.beats[0].database == store.identity() == follower.database
    assert follower.keys == digests(store)
    assert _default(follower) == Mode.OFF
    key, _ = store.keys.create("one more")
    await follower.until(lambda: follower.state == running.state())
    store.keys.revoke(key.id)
    await follower.until(lambda: follower.state == running.state())
    assert follower.keys == digests(store)
    store.apply([], ServerDefaults(TABLE.with_original(Mode.ENFORCE)))
    await follower.until(lambda: follower.state == running.state())
    assert _default(follower) == Mode.ENFORCE
    assert len(follower.snapshots) == 1
    await follower.leave()


async def test_defaults_without_a_revision(running: Running) -> None:
    """A follower that has the settings in force still gets the defaults: a part of them is this
    policyd's own, and another policyd sent the settings."""
    before = await running.up_to_date()
    await before.leave()
    follower = await running.up_to_date(before)
    await follower.until(lambda: _default(follower) == Mode.OFF)
    assert not follower.snapshots
    await follower.leave()


async def test_every_setting_arrives(running: Running) -> None:
    """Modes, values, overrides, places and ends of keys arrive as the table has them."""
    policies = (("max_tokens", Setting(Mode.ENFORCE, "500")),)
    key, _ = running.store.keys.create("all", policies, accept=("user", "metadata.user_id"))
    running.store.keys.rotate(key.id, timedelta(hours=1))
    follower = await running.up_to_date()
    table = running.server._keys
    for piece in follower.pieces:
        for one in piece.keys:
            held = table.settings(one.digest)
            assert held is not None
            shared = piece.shared[one.shared]
            assert tuple(shared.accept) == held.accept
            assert [(named.policy, named.setting.value) for named in shared.policies] == [
                (name, setting.value) for name, setting in held.policies
            ]
            assert (one.until if one.HasField("until") else None) == held.until
    ends = [one.HasField("until") for piece in follower.pieces for one in piece.keys]
    assert sorted(ends) == [False, True]
    await follower.leave()


async def test_a_large_snapshot_is_in_pieces(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message has more keys than a piece, and a change during the snapshot comes after it."""
    monkeypatch.setattr(local_messages, "PIECE", 5)
    store = running.store
    for number in range(13):
        store.keys.create(f"key {number}")
    await asyncio.wait_for(running.server._keys.wait_for(running.state().revision, 30), 30)
    follower = await running.follower()
    store.keys.create("meanwhile")
    await follower.until(lambda: follower.state == running.state())
    assert follower.keys == digests(store)
    assert max(len(piece.keys) for piece in follower.pieces) == 5
    assert len(follower.snapshots) == 1
    await follower.leave()


async def test_resuming(running: Running) -> None:
    """At the same state nothing is sent but heartbeats; behind it, what changed since."""
    running.store.keys.create("one")
    first = await running.up_to_date()
    await first.leave()
    same = await running.follower(first)
    await same.beaten(2)
    assert (same.snapshots, same.pieces) == ([], [])
    await same.leave()
    running.store.keys.create("two")
    behind = await running.up_to_date(first)
    assert behind.snapshots == []
    assert behind.keys == digests(running.store)
    await behind.leave()


async def test_beyond_the_recent_changes(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that is further behind than the memory of changes reaches gets a snapshot."""
    monkeypatch.setattr(key_feed, "_RECENT", 2)
    running.store.keys.create("one")
    first = await running.up_to_date()
    await first.leave()
    for number in range(4):
        running.store.keys.create(f"more {number}")
        await running.server._keys.wait_for(running.state().revision, 10)
    behind = await running.up_to_date(first)
    assert [one.put_back for one in behind.snapshots] == [False]
    assert behind.keys == digests(running.store)
    await behind.leave()


def put_back(url: str, revision: int) -> None:
    """Make the database what a backup from before has."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in (
            "DELETE FROM api_keys WHERE revision > :back",
            "DELETE FROM revision_epochs WHERE revision > :back",
            "UPDATE revision SET value = :back",
        ):
            connection.execute(sa.text(statement), {"back": revision})
    engine.dispose()


@pytest.mark.parametrize("more", [0, 1, 3])
async def test_a_database_that_was_put_back(running: Running, more: int) -> None:
    """Followers go back with the database, at a lower, the same and a higher revision."""
    store = running.store
    store.keys.create("kept")
    kept = running.state()
    store.keys.create("lost")
    follower = await running.up_to_date()
    put_back(running.settings.database_url, kept.revision)
    for number in range(more):
        store.keys.create(f"anew {number}")
    await follower.until(lambda: follower.state == running.state())
    assert follower.keys == digests(store)
    is_higher = running.state().revision > kept.revision + 1
    assert follower.snapshots[-1].put_back is not is_higher
    await follower.leave()


@pytest.mark.slow
async def test_a_policyd_that_lags(running: Running) -> None:
    """A follower that knows more than this policyd keeps it until policyd has looked again."""
    running.store.keys.create("one")
    await running.server._keys.wait_for(running.state().revision, 10)
    ahead = FakeFollower()
    ahead.state, ahead.database = State(99, "ab" * 8), running.store.identity()
    running.server._keys._changes_since = _never
    # A look that began before may still come.
    await asyncio.sleep(0.5)
    await ahead.follow(running.channel)
    await ahead.beaten(3)
    assert ahead.snapshots == []
    running.server._keys._changes_since = running.store.keys.changes_since
    await ahead.until(lambda: ahead.state == running.state())
    assert [one.put_back for one in ahead.snapshots] == [True]
    await ahead.leave()


def _never(_: int, __: str) -> Any:
    raise OSError("the database is away")


@pytest.mark.slow
async def test_the_database_is_away(running: Running) -> None:
    """Followers are served from memory, and heartbeats tell how old that is."""
    running.store.keys.create("one")
    first = await running.up_to_date()
    running.server._keys._changes_since = _never
    await first.beaten(3)
    new = await running.up_to_date()
    assert new.keys == first.keys
    ages = [one.staleness_seconds for one in first.beats]
    assert ages[-1] > ages[0]
    assert ages[-1] > 1.5
    for follower in (first, new):
        await follower.leave()


async def test_a_start_by_the_snapshot(tmp_path: Path) -> None:
    """A policyd that starts while its database is away serves its own snapshot, as old as it is;
    a follower at that state gets nothing."""
    settings = made(tmp_path)
    store = open_store(settings.database_url)
    store.keys.create("one")
    async with serving(settings, store) as running:
        first = await running.up_to_date()
        async with asyncio.timeout(30):
            while not settings.snapshot_file.exists():
                await asyncio.sleep(0.05)
        await first.leave()
    store.close()
    file = tmp_path / "policyd.db"
    file.rename(tmp_path / "away.db")
    file.mkdir()
    async with serving(settings, store) as running:
        same, new = await running.follower(first), await running.follower()
        await new.until(lambda: new.state == first.state)
        await same.beaten(2)
        assert (same.snapshots, new.keys) == ([], first.keys)
        assert same.beats[-1].staleness_seconds > 0
        await same.leave()
        await new.leave()


async def test_nothing_is_known_yet(tmp_path: Path) -> None:
    """Heartbeats say so, and a follower keeps what it has."""
    (tmp_path / "policyd.db").mkdir()
    settings = made(tmp_path)
    async with worker(replace(settings, snapshot_max_age=0.0)) as server:
        channel = grpc.aio.insecure_channel(str(server.grpc))
        follower = FakeFollower()
        await follower.follow(channel, revision=7, has_none=False, epoch="ab")
        await follower.beaten(2)
        assert {one.database for one in follower.beats} == {""}
        assert follower.snapshots == []
        await follower.leave()
        await channel.close()


@pytest.mark.parametrize("token", ["", "wrong-token-wrong-token", "caller-caller-caller"])
async def test_only_the_local_token_opens_it(tmp_path: Path, token: str) -> None:
    """Without it the call ends, and the error says which setting has it; nor does it open more."""
    caller = tmp_path / "caller-token"
    caller.write_text("caller-caller-caller")
    caller.chmod(0o600)
    settings = made(tmp_path, caller_token_file=caller)
    store = open_store(settings.database_url)
    async with serving(settings, store) as running:
        error = await rejection(stub(running.channel).WatchKeys(metadata=bearer(token)))
        assert error.code() is CODE.UNAUTHENTICATED
        assert "--local-token-file" in (error.details() or "")
        right = await running.up_to_date()
        await right.leave()
        async with PolicyClient(str(running.server.grpc), token=TOKEN) as client:
            with pytest.raises(NoDecision, match="caller-token"):
                await client.evaluate(policy_pb2.EvaluateRequest(has_user=True))
    store.close()


async def test_without_the_setting(tmp_path: Path) -> None:
    """The service is not there."""
    settings = made(tmp_path, local_token_file=None)
    store = open_store(settings.database_url)
    async with serving(settings, store) as running:
        error = await rejection(stub(running.channel).WatchKeys(metadata=bearer()))
        assert error.code() is CODE.UNIMPLEMENTED
    store.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"follower_id": ""}, "follower_id takes 12 digits"),
        ({"follower_id": "0" * 13}, "follower_id takes 12 digits"),
        ({"host": "a\nb"}, "host has up to 256"),
        ({"host": "a" * 257}, "host has up to 256"),
        ({"version": "1" * 65}, "version has up to 64"),
        ({"revision": -1}, "revision takes a number"),
        ({"epoch": "x"}, "epoch takes"),
        ({"database": "../.."}, "database takes"),
    ],
)
async def test_a_malformed_first_message(running: Running, given: Any, words: str) -> None:
    """The error names the field."""
    follower = await running.follower(**given)
    await follower.until(lambda: follower.error)
    assert follower.error is not None
    assert follower.error.code() is CODE.INVALID_ARGUMENT
    assert words in (follower.error.details() or "")


async def test_bytes_that_are_no_message(running: Running) -> None:
    """Bytes that are no message end the stream with an error, and no stack is logged."""
    call: Any = running.channel.stream_stream("/policyd.v1.LocalDecisionService/WatchKeys")
    stream = call(metadata=bearer())
    await stream.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError, match="not a message"):
        await stream.read()
    assert await stream.code() is CODE.INVALID_ARGUMENT


async def test_another_database(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A gateway of another installation gets no settings, and both logs name the databases."""
    follower = await running.follower(database="ab" * 16)
    await follower.until(lambda: follower.error)
    assert follower.error is not None
    assert follower.error.code() is CODE.UNAVAILABLE
    assert running.store.identity() in (follower.error.details() or "")
    assert "gateway-1" in caplog.text
    assert (follower.beats, follower.keys) == ([], {})


@pytest.mark.slow
async def test_snapshots_wait_for_their_turn(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound, followers get heartbeats, and their snapshot later."""
    monkeypatch.setattr(watch_keys, "SNAPSHOTS", 0)
    running.store.keys.create("one")
    waiting = [await running.follower() for _ in range(3)]
    await asyncio.gather(*(follower.beaten(2) for follower in waiting))
    assert [follower.snapshots for follower in waiting] == [[], [], []]
    monkeypatch.setattr(watch_keys, "SNAPSHOTS", 1)
    for follower in waiting:
        await follower.until(partial(_has, follower, running))
        assert len(follower.snapshots) == 1
        await follower.leave()


async def test_too_many_followers(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower beyond the bound is refused; the others go on."""
    monkeypatch.setattr(followers, "MOST", 1)
    first = await running.up_to_date()
    second = await running.follower()
    await second.until(lambda: second.error)
    assert second.error is not None
    assert second.error.code() is CODE.RESOURCE_EXHAUSTED
    await first.beaten(1)
    await first.leave()
    third = await running.up_to_date()
    await third.leave()


@pytest.mark.slow
async def test_a_slow_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that reads nothing is ended, and the others are served meanwhile."""
    monkeypatch.setattr(watch_keys, "_PATIENCE", 1.0)
    settings = made(tmp_path)
    store = open_store(settings.database_url)
    async with serving(settings, store) as running:
        many = {secrets.token_bytes(32): KeySettings("key_" + "0" * 16) for _ in range(20_000)}
        running.server._keys._settings.update(many)
        options = [("grpc.http2.lookahead_bytes", 65535), ("grpc.http2.bdp_probe", 0)]
        channel = grpc.aio.insecure_channel(str(running.server.grpc), options=options)
        call = stub(channel).WatchKeys(metadata=bearer())
        await call.write(pb.WatchKeysRequest(follower_id="0" * 12, has_none=True))
        other = await running.up_to_date()
        async with asyncio.timeout(30):
            while len(running.server._followers) > 1:
                await asyncio.sleep(0.05)
        await other.beaten(1)
        await other.leave()
        call.cancel()
        await channel.close()
    store.close()


async def test_a_flood_of_watches(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that need no token push out each other, and no follower."""
    for listener in running.server._listeners:
        listener._waiting._most = 3
    follower = await running.up_to_date()
    stubs: Any = health_pb2_grpc.HealthStub
    watches = [stubs(running.channel).Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
    for watch in watches:
        await watch.read()
    ended = [watch for watch in watches if watch.done()]
    await follower.beaten(2)
    assert follower.error is None
    assert len(ended) >= 10 or any([await watch.code() for watch in watches[:10]])
    for watch in watches:
        watch.cancel()
    await follower.leave()


@pytest.mark.slow
async def test_a_restart_under_many_followers(tmp_path: Path) -> None:
    """If nothing changed, none gets a snapshot; otherwise each gets one at most."""
    settings = made(tmp_path)
    store = open_store(settings.database_url)
    store.keys.create("one")
    async with serving(settings, store) as running:
        before = [await running.up_to_date() for _ in range(50)]
    async with serving(settings, store) as running:
        same = [await running.follower(one) for one in before]
        await asyncio.gather(*(follower.beaten(2) for follower in same))
        assert sum(len(one.snapshots) for one in same) == 0
    store.keys.create("two")
    async with serving(settings, store) as running:
        behind = [await running.follower(one) for one in same]
        for follower in behind:
            await follower.until(partial(_has, follower, running))
            assert len(follower.snapshots) == 1
            assert follower.keys == digests(store)
        for follower in behind:
            await follower.leave()
    store.close()


async def test_followers_are_counted(running: Running) -> None:
    """The database knows which settings are in force at each, and when one has left."""
    running.store.keys.create("one")
    followers = [await running.up_to_date() for _ in range(2)]

    async def until_counted(revisions: dict[str, int]) -> None:
        async with asyncio.timeout(30):
            while True:
                found = [one for one in running.store.workers.list() if one.is_gateway]
                if {one.id: one.revision for one in found} == revisions:
                    return
                await asyncio.sleep(0.05)

    await until_counted(dict.fromkeys((one.id for one in followers), running.state().revision))
    running.store.keys.create("two")
    for follower in followers:
        await follower.until(partial(_has, follower, running))
    await until_counted(dict.fromkeys((one.id for one in followers), running.state().revision))
    await followers[0].leave()
    await until_counted({followers[1].id: running.state().revision})
    await followers[1].leave()
    await until_counted({})


async def test_a_policyd_that_ends_takes_them_along(tmp_path: Path) -> None:
    """The followers of a policyd that ends are no longer counted, because their streams have
    ended."""
    settings = made(tmp_path)
    store = open_store(settings.database_url)
    async with serving(settings, store) as running:
        follower = await running.up_to_date()
        async with asyncio.timeout(30):
            while len(store.workers.list()) < 2:
                await asyncio.sleep(0.05)
    assert store.workers.list() == []
    await follower.leave()
    store.close()
