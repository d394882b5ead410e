"""Requests without an API key in force: counted by minute and source, apart from the log."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from policyd.client import PolicyClient
from policyd.decision_log.record import Outcome, Record
from policyd.decision_log.refused_key import (
    OTHERS,
    REASONS,
    RefusedKey,
    RefusedKeyCount,
    RefusedKeyReason,
    source_of,
)
from policyd.decision_log.refused_tally import MAX_SAMPLES, MAX_SOURCES, SAMPLES, RefusedKeyTally
from policyd.decision_log.shipper import Shipper
from policyd.decision_log.spool import SpoolReader, SpoolWriter
from policyd.decision_log.writer import DecisionLog
from policyd.engine.states import Credential
from policyd.errors import LogFull
from policyd.store import LogFilter, RefusedKeyCounts, Store
from policyd.store import refused_keys as store_refused_keys
from policyd.store.destination import StoreDestination
from policyd.v1.admin_pb2 import GetLogStatusRequest, GetLogStatusResponse
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from policyd.v1.policy_pb2 import EvaluateRequest, EvaluateResponse
from tests.support.databases import open_store
from tests.support.processes import Policyd
from tests.support.records import START, decision_id, record

HOUR = timedelta(hours=1)
MISSING, UNKNOWN, CONFLICTING = RefusedKeyReason
Entries = list[RefusedKey | RefusedKeyCount]


@pytest.fixture
def store(new_database: str) -> Iterator[Store]:
    with closing(open_store(new_database)) as opened:
        yield opened


def refused_key(source_ip: str = "192.0.2.1", reason: RefusedKeyReason = UNKNOWN) -> RefusedKey:
    return RefusedKey(decision_id(), reason, source_ip, "POST", "/v1/chat/completions", "gpt-4o")


def count(at: datetime = START, **given: object) -> RefusedKeyCount:
    """The count that a process made of a source."""
    minute = int(at.timestamp()) // 60
    usual = {"process": "a", "stretch": 0, "minute": minute, "source": "192.0.2.1"}
    numbers = {"missing": 0, "unknown": 1, "conflicting": 0}
    return RefusedKeyCount(**usual | numbers | given)  # type: ignore[arg-type]  # any of them


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now


class Tally(RefusedKeyTally):
    """A tally whose clock the test moves, with the entries that it has written."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__("a", self.clock)
        self.takes = True
        self.written: Entries = []

    def write(self, entries: Entries) -> bool:
        if self.takes:
            self.written += entries
        return self.takes

    @property
    def counts(self) -> list[RefusedKeyCount]:
        self.written.clear()
        self.flush(self.write)
        return [one for one in self.written if isinstance(one, RefusedKeyCount)]

    @property
    def samples(self) -> list[RefusedKey]:
        return [one for one in self.written if isinstance(one, RefusedKey)]


def total(counts: list[RefusedKeyCount]) -> int:
    """The requests of the last entry of each source."""
    latest = {(one.process, one.stretch, one.source): one for one in counts}
    return sum(one.missing + one.unknown + one.conflicting for one in latest.values())


def test_reasons() -> None:
    """Each way to send no key in force has its reason."""
    assert REASONS.keys() == set(Credential)
    assert set(REASONS.values()) == set(RefusedKeyReason)


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("others", ""),
        ("192.0.2.1, 192.0.2.2", ""),
        ("192.0.2.1" * 1_000_000, ""),
        ("\0", ""),
    ],
)
def test_sources(address: str, source: str) -> None:
    """All addresses of an IPv6 network are one source; a text that is no address is none."""
    assert source_of(address) == source


def test_a_minute() -> None:
    """Requests are counted by source and reason, and some are kept.

    A count grows during its minute.
    """
    tally = Tally()
    for reason in (MISSING, UNKNOWN, UNKNOWN, CONFLICTING):
        tally.add(refused_key(reason=reason))
    tally.add(refused_key("192.0.2.2"))
    first, other = tally.counts
    assert (first.source, first.missing, first.unknown, first.conflicting) == ("192.0.2.1", 1, 2, 1)
    assert (other.source, other.unknown) == ("192.0.2.2", 1)
    assert first.minute == int(START.timestamp()) // 60
    assert len(tally.samples) == SAMPLES + 1
    assert tally.counts == []
    tally.add(refused_key())
    [again] = tally.counts
    assert (again.stretch, again.source, again.unknown) == (first.stretch, first.source, 3)
    assert tally.samples == []
    tally.clock.now += 60
    assert tally.counts == []
    tally.add(refused_key())
    [next_minute] = tally.counts
    assert (next_minute.stretch, next_minute.unknown) == (first.stretch + 1, 1)
    assert next_minute.minute == first.minute + 1
    assert len(tally.samples) == 1


def test_samples_of_each_minute() -> None:
    """Every minute has MAX_SAMPLES anew, of however many sources."""
    tally = Tally()
    for _ in range(3):
        for number in range(2 * MAX_SAMPLES):
            tally.add(refused_key(f"192.0.2.{number}"))
        assert tally.counts
        assert len(tally.samples) == MAX_SAMPLES
        tally.clock.now += 60
        assert tally.counts == []


def test_a_source_that_was_there_before_the_others() -> None:
    """A source that is counted by itself stays so, however many others come."""
    tally = Tally()
    for number in range(MAX_SOURCES + 10):
        tally.add(refused_key(f"192.0.2.{number}"))
    for _ in range(5):
        tally.add(refused_key("192.0.2.0"))
    counts = {one.source: one.unknown for one in tally.counts}
    assert counts["192.0.2.0"] == 6
    assert counts[OTHERS] == 10
    assert len(counts) == MAX_SOURCES + 1


def test_whatever_strangers_send() -> None:
    """Neither memory nor disk grows with the requests, the sources or their content."""
    tally = Tally()
    chance = random.Random(1)
    text = "\U0001f600" * 200
    written: list[RefusedKeyCount] = []
    samples = size = 0
    for _ in range(5):
        for number in range(4000):
            address = chance.choice((IPv4Address, IPv6Address))(chance.getrandbits(32))
            one = RefusedKey(decision_id(), UNKNOWN, str(address), *[text] * 6)
            tally.add(one if number % 2 else msgspec.structs.replace(one, source_ip=text))
        written += tally.counts
        samples += len(tally.samples)
        size += len(msgspec.json.Encoder().encode_lines(tally.written))
    assert total(written) == 20_000
    assert len({one.source for one in written}) == MAX_SOURCES + 1
    assert {one.source for one in written} >= {OTHERS, ""}
    assert samples == MAX_SAMPLES
    assert size < 5 * (MAX_SOURCES + 1) * 120 + MAX_SAMPLES * 8000


def test_a_clock_put_back() -> None:
    """Two stretches of one minute are not taken for one."""
    tally = Tally()
    written = []
    for step in (0, 60, -60, -3600):
        tally.clock.now += step
        written += tally.counts
        tally.add(refused_key())
        written += tally.counts
    assert total(written) == 4


def test_what_cannot_be_written() -> None:
    """A count that could not be written is tried again, even in a later minute; a sample is not."""
    tally = Tally()
    tally.takes = False
    for number in range(5):
        tally.add(refused_key(f"192.0.2.{number}"))
        assert tally.counts == []
        tally.clock.now += 60
    tally.takes = True
    [rest] = tally.counts
    assert (rest.source, rest.unknown) == (OTHERS, 5)
    assert tally.samples == []
    assert tally.counts == []


def test_counted_once(store: Store) -> None:
    """A count that is shipped twice, or again with more, is counted once."""
    first, more = count(), count(unknown=3, missing=1)
    others = [count(source="192.0.2.2"), count(process="b"), count(stretch=1)]
    other: list[RefusedKey | RefusedKeyCount] = [*others, refused_key()]
    store.log.append([first, *other])
    store.log.append([first, *other])
    store.log.append([first, more])
    store.log.append([more, *other])
    store.log.append([first])
    assert store.refused_keys.hours(START, START) == [(START, RefusedKeyCounts(1, 6, 0))]
    assert store.refused_keys.total() == 7
    [one, two] = store.refused_keys.sources(START, START)
    assert (one.source, one.counts, one.last) == ("192.0.2.1", RefusedKeyCounts(1, 5, 0), START)
    assert (two.source, two.counts.total) == ("192.0.2.2", 1)
    assert len(store.refused_keys.samples(START)) == 1


def test_kept_apart(store: Store) -> None:
    """Refused keys are in no count and on no page of the log."""
    one = msgspec.structs.replace(refused_key(), user_agent="a\0b")
    store.log.append([record(), one, count()])
    assert store.log.status().decisions == len(store.log.page(LogFilter())) == 1
    [(_, counts)] = store.statistics.hours(START, START)
    assert (counts.requests, counts.denied) == (1, 0)
    assert [user for user, _ in store.statistics.users(START, START)] == ["ada"]
    found = store.refused_keys.sample(one.id)
    assert found == msgspec.structs.replace(one, user_agent="a\N{REPLACEMENT CHARACTER}b")
    assert store.refused_keys.sample("x\0") is None


def test_periods(store: Store) -> None:
    """Only the counts within the requested period are returned."""
    store.log.append([count(START, stretch=0), count(START + HOUR, stretch=1), refused_key()])
    assert [at for at, _ in store.refused_keys.hours(START, START + HOUR)] == [START, START + HOUR]
    assert [at for at, _ in store.refused_keys.hours(START + HOUR, START + HOUR)] == [START + HOUR]
    assert [one.last for one in store.refused_keys.sources(START, START + HOUR)] == [START + HOUR]
    assert store.refused_keys.sources(START + 2 * HOUR, START + 3 * HOUR) == []
    assert store.refused_keys.samples(START + HOUR) == []


def test_retention(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention deletes what is too old, and then the oldest of what is too much.

    The hourly counts stay.
    """
    monkeypatch.setattr(store_refused_keys, "MAX_ROWS", 5)
    monkeypatch.setattr(store_refused_keys, "MAX_SAMPLES", 3)
    monkeypatch.setattr(store_refused_keys, "KEEP", timedelta(days=100_000))
    store.log.append([count(START + n * HOUR, stretch=n) for n in range(10)])
    samples = [RefusedKey(decision_id(START + n * HOUR), UNKNOWN) for n in range(5)]
    store.log.append(samples)
    store.log.expire(START, 10**6)
    assert sum(one.counts.total for one in store.refused_keys.sources(START, START + 9 * HOUR)) == 5
    assert store.refused_keys.samples(START) == samples[:1:-1]
    store.log.expire(START + 8 * HOUR, 10**6)
    assert sum(one.counts.total for one in store.refused_keys.sources(START, START + 9 * HOUR)) == 2
    assert store.refused_keys.samples(START) == []
    assert store.refused_keys.total() == 10


def test_the_way_to_the_store(tmp_path: Path) -> None:
    """A worker's counts reach the store by the spool, beside its decisions, and once."""
    with closing(open_store(f"sqlite:///{tmp_path}/policyd.db")) as opened:
        writer = SpoolWriter(tmp_path, "a", 2**20)
        log = DecisionLog(writer, "a", drop_when_full=False)
        log.append([refused_key(), one := record(), Outcome(one.id)])
        log.append([refused_key()])
        reader = SpoolReader(tmp_path)
        shipper = Shipper(StoreDestination(opened), reader)
        assert shipper.ship() == 2
        log.flush()
        shipper.ship()
        log.append([refused_key()])
        log.flush()
        shipper.ship()
        assert opened.refused_keys.total() == 3
        assert [one.id for one in opened.log.page(LogFilter())] == [one.id]
        writer.close()
        reader.close()


@pytest.mark.parametrize("drops", [False, True])
def test_room_for_decisions(tmp_path: Path, drops: bool) -> None:
    """Refused keys take a quarter of the spool at most, and are answered even where it is full."""
    writer = SpoolWriter(tmp_path, "a", 40_000)
    log = DecisionLog(writer, "a", drop_when_full=drops)
    for number in range(5000):
        log.append([refused_key(f"192.0.{number % 250}.{number // 250}")])
        if number % 50 == 0:
            writer._looked_at = 0  # As if some time had passed.
            log.flush()
    used = sum(file.stat().st_size for file in tmp_path.glob("*.jsonl"))
    assert used < 0.25 * 40_000 + (MAX_SOURCES + 1) * 120 + MAX_SAMPLES * 400
    kept = 0
    try:
        while kept < 500:
            log.append([record()])
            kept += 1
    except LogFull:
        assert not drops
    assert kept >= 50
    log.append([refused_key()])
    writer.close()


async def test_strangers(tmp_path: Path, start: Callable[..., Any]) -> None:
    """Every request without a key is denied at once, with an ID.

    It adds no end user and no row to the log, and is counted to the last one, even when policyd is
    stopped at once.
    """
    policyd = start(Policyd, tmp_path)
    key = policyd.create_key("enforce")
    async with PolicyClient(policyd.grpc, timeout=60) as client:

        async def ask(number: int) -> EvaluateResponse:
            given: dict[str, Any] = {"user": "ceo@corp", "source_ip": f"192.0.2.{number % 100}"}
            keys = {0: "", 1: "up-unknown", 2: "up-" + "a" * 48}
            return await client.evaluate(EvaluateRequest(key=keys[number % 3], **given))

        answers = await asyncio.gather(*map(ask, range(1000)))
        blocked = await client.evaluate(EvaluateRequest(key=key, has_user=False))
    assert {answer.denial.http_status for answer in answers} == {403}
    assert len({answer.decision_id for answer in answers}) == 1000
    status = await log_status(policyd)
    assert policyd.stop() == 0, policyd.errors
    with closing(Store(policyd.database_url)) as opened:
        since = until = datetime.now(UTC)
        since -= timedelta(days=1)
        # reach() asks without a key until the new one is in force.
        assert 1000 <= opened.refused_keys.total() < 1010
        assert [one.id for one in opened.log.page(LogFilter())] == [blocked.decision_id]
        assert [user for user, _ in opened.statistics.users(since, until)] == [""]
        assert sum(one.denied for _, one in opened.statistics.hours(since, until)) == 1
        sources = opened.refused_keys.sources(since, until, limit=1000)
        assert OTHERS in {one.source for one in sources}
        assert len(sources) <= 102
        samples = opened.refused_keys.samples(since, limit=1000)
        assert {one.id for one in samples} <= {one.decision_id for one in answers} | {
            samples[-1].id
        }
        assert len(samples) <= 2 * MAX_SAMPLES
        assert status.refused_keys <= opened.refused_keys.total()


async def log_status(policyd: Policyd) -> GetLogStatusResponse:
    """The status that AdminService reports."""
    token = (policyd.folder / "admin-token").read_text().strip()
    async with grpc.aio.insecure_channel(policyd.admin) as channel:
        return await AdminServiceStub(channel).GetLogStatus(
            GetLogStatusRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=60
        )


async def test_the_status_tells_of_them(tmp_path: Path, start: Callable[..., Any]) -> None:
    """AdminService reports the counts within seconds, while policyd runs."""
    policyd = start(Policyd, tmp_path)
    async with PolicyClient(policyd.grpc, timeout=60) as client, asyncio.timeout(60):
        await client.evaluate(EvaluateRequest(key="up-unknown", has_user=True))
        while not (status := await log_status(policyd)).refused_keys:
            await asyncio.sleep(0.2)
    assert (status.refused_keys, status.decisions) == (1, 0)


def test_a_sample_says_no_user_and_no_key() -> None:
    """A sample has no place for a user or a key, whatever fields a record has."""
    told = {*Record.__struct_fields__} & {*RefusedKey.__struct_fields__}
    assert told == {
        *("id", "source_ip", "method", "path", "model", "user_agent", "trace_id", "request_id")
    }
