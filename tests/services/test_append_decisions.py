"""AppendDecisions: gateways that decide by themselves hand over their log, each entry once."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import sqlalchemy as sa

from policyd.client.key_follower import reason
from policyd.command.log_throttle import Throttle
from policyd.decision_log.record import Record
from policyd.decision_log.refused_key import RefusedKeyCount
from policyd.errors import StoreUnavailable
from policyd.server.server import Server
from policyd.store import LogFilter, Store, decisions
from policyd.store.database import metadata
from tests.services.test_watch_keys import made
from tests.support.databases import open_store, taking_changes
from tests.support.followers import FakeCarrier, bearer, rejection, stub
from tests.support.records import outcome, record
from tests.support.running import worker

CODE = grpc.StatusCode
NOW = datetime.now(UTC)


class Running:
    def __init__(self, server: Server, store: Store) -> None:
        self.server = server
        self.store = store
        self.channel = grpc.aio.insecure_channel(str(server.grpc))
        self.key = store.keys.create("gateway's")[0].id

    async def carrier(self, **given: Any) -> FakeCarrier:
        """One that has resumed."""
        carrier = FakeCarrier(self.channel, **given)
        await carrier.resume()
        return carrier

    def records(self, count: int, **given: Any) -> list[Record]:
        return [record(NOW, **{"key_id": self.key} | given) for _ in range(count)]

    def logged(self) -> set[str]:
        return {one.id for one in self.store.log.page(LogFilter(), limit=1000)}


def lines(entries: Iterable[Any]) -> bytes:
    """As a spool has them."""
    return b"".join(msgspec.json.encode(one) + b"\n" for one in entries)


@pytest.fixture
async def running(new_database: str, tmp_path: Path) -> AsyncIterator[Running]:
    store = open_store(new_database)
    settings = made(tmp_path, database_url=new_database, database_timeout=5.0)
    # A call to PostgreSQL may outlast a worker, which ends sooner without a background worker.
    start = worker if new_database.startswith("sqlite") else Server
    async with start(settings) as server:
        found = Running(server, store)
        yield found
        await found.channel.close()
    store.close()


async def fails(carrying: Any, code: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as raised:
        await carrying
    assert raised.value.code() is code


async def test_again(running: Running) -> None:
    """An entry is in the log once, however often a gateway sends it; positions say how far its
    files have been shipped."""
    entries = running.records(20)
    sent = lines([*entries, *map(outcome, entries)])
    first = await running.carrier()
    response = await first.carry(sent)
    assert (response.appended, response.rejected) == (40, 0)
    await fails(first.carry(sent), CODE.ABORTED, "shipped up to byte")
    again = FakeCarrier(running.channel)
    resumed = await again.resume(database=running.store.identity())
    assert dict(resumed.positions) == {"aa-1.jsonl": len(sent)}
    assert resumed.database == running.store.identity()
    assert running.logged() == {one.id for one in entries}
    assert running.store.log.status().decisions == 20
    more = running.records(1)
    assert (await again.carry(lines(more), start=len(sent))).appended == 1
    await again.ask(forget={"files": ["aa-1.jsonl"]})
    assert dict((await again.resume()).positions) == {}
    again.end()


async def test_what_is_not_taken(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A line that cannot be is lost and counted, and the others are appended."""
    [good, revoked] = running.records(2)
    running.store.keys.revoke(running.key)
    bad = [
        *running.records(1, key_id="key_" + "0" * 16),
        *running.records(1, key_id=""),
        *running.records(1, key_id="key_\0"),
        record(NOW + timedelta(days=365), key_id=running.key),
        record(datetime.now(UTC) + timedelta(seconds=75), key_id=running.key),
        outcome(record(NOW + timedelta(days=365), key_id=running.key)),
        *running.records(1, id="f" * 32),
    ]
    near = record(NOW + timedelta(seconds=30), key_id=running.key)
    sent = lines([good]) + b"no entry\n\n" + lines([*bad, revoked, near])
    carrier = await running.carrier()
    response = await carrier.carry(sent)
    assert (response.appended, response.rejected) == (3, len(bad) + 2)
    assert running.logged() == {good.id, revoked.id, near.id}
    assert running.store.log.status().lost == len(bad) + 2
    told = [one for one in caplog.messages if "gateway-1" in one]
    assert len(told) == 1
    assert f"{len(bad) + 2} log entries" in told[0]
    assert (await carrier.carry(lines(running.records(1)), start=len(sent))).appended == 1
    carrier.end()


async def test_how_old_entries_may_be(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Entries of a clock at the epoch are lost and counted. A spool that is weeks old is appended;
    so are entries that retention has yet to delete, if the database is as old."""
    epoch = record(datetime.fromtimestamp(5, UTC), key_id=running.key)
    old = [epoch, outcome(epoch), RefusedKeyCount("a1", 1, 0, "192.0.2.1", 1, 1, 1)]
    weeks = record(NOW - timedelta(weeks=6), key_id=running.key)
    months = record(NOW - timedelta(days=120), key_id=running.key)
    carrier = await running.carrier()
    sent = lines([*old, weeks, months])
    response = await carrier.carry(sent)
    assert (response.appended, response.rejected) == (1, 4)
    assert running.logged() == {weeks.id}
    assert running.store.log.status().lost == 4
    assert "is the gateway's clock right?" in caplog.text
    with running.store._engine.begin() as connection:
        made = {"created_at": NOW - timedelta(days=200)}
        connection.execute(sa.update(metadata.tables["api_keys"]).values(made))
    carrier = await running.carrier()
    response = await carrier.carry(lines([epoch, months]), start=len(sent))
    assert (response.appended, response.rejected) == (1, 1)
    assert running.logged() == {weeks.id, months.id}
    carrier.end()


async def test_a_gateway_that_was_away_for_months(running: Running) -> None:
    """policyd has forgotten the gateway's positions: it appends its files anew, and each decision
    is there once."""
    entries = running.records(20)
    sent = lines([*entries, *map(outcome, entries)])
    carrier = await running.carrier()
    await carrier.carry(sent)
    with running.store._engine.begin() as connection:
        long_ago = {"seen_at": NOW - timedelta(days=31)}
        connection.execute(sa.update(metadata.tables["spool_positions"]).values(long_ago))
    other = await running.carrier(spool="6" * 16)
    await fails(carrier.carry(lines(entries[:1]), start=len(sent)), CODE.ABORTED, "shipped up to")
    again = FakeCarrier(running.channel)
    assert dict((await again.resume()).positions) == {}
    more = running.records(1)
    await again.carry(sent + lines(more))
    assert running.logged() == {one.id for one in [*entries, *more]}
    assert running.store.log.status().decisions == 21
    other.end()
    again.end()


async def test_the_id_of_another_keys_decision(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log keeps what it has, and says that the other one is lost. What is the same key's counts
    as handed over again."""
    monkeypatch.setattr(decisions, "_throttle", Throttle(60.0))
    other = running.store.keys.create("another")[0].id
    first = running.records(3)
    carrier = await running.carrier()
    sent = lines(first)
    await carrier.carry(sent)
    again = [record(NOW, id=first[0].id, key_id=other), first[1], *running.records(1)]
    await carrier.carry(lines(again), start=len(sent))
    assert running.logged() == {one.id for one in [*first, again[2]]}
    assert running.store.log.get(first[0].id).key_id == running.key
    assert running.store.log.status().lost == 1
    told = [one for one in caplog.messages if "of other API keys" in one]
    assert len(told) == 1
    assert told[0].startswith("1 decisions are not logged")
    assert told[0].endswith(first[0].id)
    carrier.end()


async def test_numbers_and_texts_that_no_database_holds(running: Running) -> None:
    """Such entries are lost and counted, policyd appends what comes after them, and sums can be
    read."""
    minute = int(NOW.timestamp()) // 60
    most = (2**53 - 1,) * 3
    bad = [RefusedKeyCount(f"{one}", one, minute, "192.0.2.1", *most) for one in range(1100)]
    bad.append(RefusedKeyCount("a\0", 1, minute, "192.0.2.1", 1, 1, 1))
    bad.append(RefusedKeyCount("a", 1, minute, "\0", 1, 1, 1))
    deep = b"[" * 2**19 + b"\n"
    [good] = running.records(1, trace_id="a\0b", end_user="\0", model="\0")
    reported = outcome(good, model="\0", openai_id="\0")
    most_counted = RefusedKeyCount("b", 1, minute, "192.0.2.1", *((2**32 - 1,) * 3))
    carrier = await running.carrier()
    response = await carrier.carry(lines(bad) + deep + lines([good, reported, most_counted]))
    assert (response.appended, response.rejected) == (3, len(bad) + 1)
    assert running.logged() == {good.id}
    assert running.store.refused_keys.total() == 3 * (2**32 - 1)
    await carrier.ask(losses={"lost": {f"{one}": 2**40 - 1 for one in range(1000)}})
    assert running.store.log.status().lost == 1000 * (2**40 - 1) + len(bad) + 1
    carrier.end()


async def test_a_message_too_large(running: Running) -> None:
    """The gateway says what to set."""
    carrier = await running.carrier()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await carrier.carry(b"x" * 5 * 2**20)
    assert "--max-message" in reason(raised.value.code(), raised.value.details())


async def test_losses(running: Running) -> None:
    """Losses of gateways are counted with the rest, and their count never goes back."""
    carrier = await running.carrier()
    await carrier.ask(losses={"lost": {"a1": 3, "b2": 4}})
    await carrier.ask(losses={"lost": {"a1": 2}})
    found = await carrier.ask(lost_by={"processes": ["a1", "b2", "c3"]})
    assert dict(found.lost) == {"a1": 3, "b2": 4}
    assert running.store.log.status().lost == 7
    carrier.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"chunk": {"file": "../x.jsonl", "start": 0, "lines": b"x\n"}}, "chunk.file takes"),
        ({"chunk": {"file": "a-1.jsonl", "start": -1, "lines": b"x\n"}}, "chunk.start takes"),
        ({"chunk": {"file": "a-1.jsonl", "start": 0}}, "chunk.lines is empty"),
        ({"forget": {"files": ["x"]}}, "forget.files takes"),
        ({"forget": {"files": ["a-1.jsonl"] * 1001}}, "at most 1000 names"),
        ({"losses": {"lost": {"a b": 1}}}, "losses.lost takes"),
        ({"losses": {"lost": {"a": 2**40}}}, "losses.lost takes a number"),
        ({"losses": {"lost": {"a": -1}}}, "losses.lost takes a number"),
        ({"resume": {"spool": "6" * 16}}, "of one spool"),
        ({"resume": {"spool": "x"}}, "resume.spool takes"),
        ({}, "begins with"),
    ],
)
async def test_malformed_requests(running: Running, request_: Any, words: str) -> None:
    """Each ends the stream with an error that names the field."""
    carrier = await running.carrier()
    await fails(carrier.ask(**request_), CODE.INVALID_ARGUMENT, words)


async def test_a_stream_that_does_not_resume(running: Running) -> None:
    """Without a spool nothing can be appended."""
    carrier = FakeCarrier(running.channel)
    await fails(carrier.carry(b"x\n"), CODE.INVALID_ARGUMENT, "begins with `resume`")


async def test_decisions_of_another_database(running: Running) -> None:
    """policyd does not take decisions of another database, so that the gateway keeps them."""
    carrier = FakeCarrier(running.channel)
    wrong = carrier.resume(database="ab" * 16)
    await fails(wrong, CODE.UNAVAILABLE, running.store.identity())


async def test_the_local_token_only(running: Running) -> None:
    """Without it nothing is appended."""
    other = bearer("another-token-of-some-length")
    error = await rejection(stub(running.channel).AppendDecisions(metadata=other))
    assert error.code() is CODE.UNAUTHENTICATED
    assert "--local-token-file" in (error.details() or "")


async def test_the_database_takes_no_changes(tmp_path: Path) -> None:
    """The stream ends with UNAVAILABLE, and nothing of the chunk is there; later it is taken."""
    url = f"sqlite:///{tmp_path}/policyd.db"
    store = open_store(url)
    async with worker(made(tmp_path, database_url=url)) as server:
        running = Running(server, store)
        sent = lines(running.records(5))
        carrier = await running.carrier()
        with taking_changes() as allow:
            allow(False)
            await fails(carrier.carry(sent), CODE.UNAVAILABLE, "database")
            allow(True)
            assert running.logged() == set()
            carrier = await running.carrier()
            assert (await carrier.carry(sent)).appended == 5
        carrier.end()
        await running.channel.close()
    store.close()


async def test_many_spools_at_once(running: Running) -> None:
    """Spools wait for their turn, and the log has what all of them sent."""
    entries = {f"{number:016x}": running.records(60) for number in range(8)}

    async def carry(spool: str) -> None:
        carrier = await running.carrier(spool=spool)
        start = 0
        for first in range(0, 60, 20):
            sent = lines(entries[spool][first : first + 20])
            assert (await carrier.carry(sent, start=start)).appended == 20
            start += len(sent)
        carrier.end()

    await asyncio.gather(*map(carry, entries))
    assert running.logged() == {one.id for some in entries.values() for one in some}
    assert running.store.log.status().decisions == 480
    assert running.store.log.status().lost == 0


async def test_a_store_that_hangs(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a database that does not answer reaches the gateway as such."""

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("the database cannot be used: away")

    monkeypatch.setattr(running.server._store.positions, "keep", away)
    await fails(FakeCarrier(running.channel).resume(), CODE.UNAVAILABLE, "away")
