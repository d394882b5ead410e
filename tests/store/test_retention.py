"""Retention deletes what is old, and no clock and no slip makes it delete nearly everything."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount, RefusedKeyReason
from policyd.errors import StoreUnavailable
from policyd.store import LogFilter, Store
from policyd.store.database import reading
from policyd.store.engine import open_engine
from policyd.store.log_pages import page_query
from policyd.store.partitions import make_days, partitions
from policyd.v1 import admin_pb2 as pb
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from tests.support.commands import invoke
from tests.support.databases import open_store
from tests.support.machine_clock import wrong_machine_clock
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd
from tests.support.records import decision_id, denied, record
from tests.support.waiting import until

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
PLENTY = 10**6


def now() -> datetime:
    return datetime.now(UTC)


def retire(store: Store, keep: timedelta, max_rows: int = PLENTY) -> int:
    """Retire records until none is due, and return their number."""
    retired = 0
    while some := store.log.retire(keep, max_rows):
        retired += some
    return retired


def kept(store: Store) -> int:
    found = len(store.log.page(LogFilter(), limit=10**6))
    assert store.log.status().decisions == found
    return found


def test_what_is_old_goes(store: Store) -> None:
    """The retention may be hours as well as days; PostgreSQL keeps the records of one more day."""
    begun = now()
    store.log.append([record(begun - n * DAY) for n in range(20)])
    store.log.append([record(begun - timedelta(hours=n, minutes=1)) for n in range(20)])
    retire(store, 15.5 * DAY)
    left = [one.time for one in store.log.page(LogFilter(), limit=100)]
    assert begun - 16.6 * DAY < min(left) < begun - 13 * DAY
    for hours in (300, 200, 100, 40, 10):
        retire(store, timedelta(hours=hours))
        assert not store.log.standstill().reason
    left = [one.time for one in store.log.page(LogFilter(), limit=100)]
    assert len(left) == 11
    assert min(left) > begun - timedelta(hours=11)


@pytest.mark.slow
def test_as_time_passes(store: Store) -> None:
    """Records that age are deleted, though they are nearly all."""
    first = [record(now() - timedelta(milliseconds=n)) for n in range(200)]
    store.log.append(first)
    begun = time.monotonic()
    while any(one in first for one in store.log.page(LogFilter(), limit=1000)):
        assert time.monotonic() < begun + 60
        store.log.append([record(now())])
        retire(store, 3 * SECOND)
        assert not store.log.standstill().reason
        time.sleep(0.5)
    assert kept(store) >= 1


def test_an_idle_log(store: Store) -> None:
    """No record is deleted that is younger than the newest decision less the retention."""
    store.log.append([record(now() - 100 * DAY - n * DAY) for n in range(50)])
    assert retire(store, 60 * DAY) == 0
    assert kept(store) == 50


def test_a_decision_from_the_future(store: Store) -> None:
    """A worker whose clock is ahead moves nothing, as its decisions' times are not believed."""
    store.log.append([record(now() - n * DAY / 10) for n in range(300)])
    assert retire(store, 90 * DAY) == 0
    store.log.append([record(now() + 100 * DAY) for _ in range(200)])
    assert retire(store, 90 * DAY) == 0
    assert kept(store) == 500


def test_a_setting_made_smaller(store: Store, new_database: str) -> None:
    """Retention waits until the operator confirms that so much is to go.

    Meanwhile the old setting holds.
    """
    store.log.append([record(now() - n * DAY / 10) for n in range(800)])
    for keep, rows, option in (
        (7 * DAY, PLENTY, "--older-than 7d"),
        (79 * DAY, 100, "--keep-rows 100"),
        (timedelta(hours=36), PLENTY, "--older-than 36h"),
    ):
        retire(store, 79 * DAY)
        before = kept(store)
        assert retire(store, keep, rows) <= 10  # A day at most, as time passes.
        standstill = store.log.standstill()
        assert standstill.waiting > before * 0.4
        status = ask(new_database, "logs", "status", "--json")
        assert status["retention_standstill"] == standstill.reason
        assert f"policyd logs retire {option} --yes" in standstill.reason
    words = ("logs", "retire", "--older-than", "7d")
    refused = invoke("policyd", *words, "--database-url", new_database)
    assert refused.returncode == 2
    assert b"give --yes" in refused.stderr
    assert kept(store) >= before - 10
    assert ask(new_database, *words, "--yes", "--json")["deleted"] > before / 2
    assert kept(store) == 70
    assert retire(store, 7 * DAY) < 12
    assert not store.log.standstill().reason
    assert ask(new_database, "logs", "retire", "--keep-rows", "5", "--yes", "--json")
    assert kept(store) == 5
    store.log.append([record(now()) for _ in range(50)])
    assert retire(store, 7 * DAY, 5) == 50


def test_a_small_bound_from_the_beginning(store: Store) -> None:
    """A bound that a new database begins with is no slip."""
    assert retire(store, 7 * DAY, 20) == 0
    store.log.append([record(now()) for _ in range(100)])
    assert retire(store, 7 * DAY, 20) == 80
    assert not store.log.standstill().reason


def ask(url: str, *words: str) -> Any:
    done = invoke("policyd", *words, "--database-url", url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def seen_at(url: str) -> datetime | None:
    engine = open_engine(url)
    try:
        with reading(engine) as connection:
            table = sa.Table("log_retention", sa.MetaData(), autoload_with=connection)
            found: datetime | None = connection.execute(sa.select(table.c.seen_at)).scalar_one()
            return found.replace(tzinfo=UTC) if found else None
    finally:
        engine.dispose()


@pytest.mark.parametrize("share", [0.1, 3.0])
@pytest.mark.programs
async def test_a_server_with_a_wrong_clock(
    store: Store, new_database: str, tmp_path: Path, start: Callable[..., Any], share: float
) -> None:
    """A second server whose clock is 100 days ahead deletes nothing, however much it has logged in
    its own time, and logs why.
    """
    store.log.append([record(now() - n * DAY / 20) for n in range(1000)])
    assert retire(store, 90 * DAY) == 0
    before, is_fooled = seen_at(new_database), new_database.startswith("sqlite")
    store.log.append([record(now() + 100 * DAY) for _ in range(int(share * 200))])
    wrong = start(
        Policyd,
        tmp_path,
        *("--log-retention", "60"),
        database_url=new_database,
        env=wrong_machine_clock(tmp_path, 100 * DAY),
    )
    if is_fooled:
        await until(lambda: any("of the log stands still" in line for line in wrong.errors))
    else:
        await until(lambda: seen_at(new_database) != before)
    assert wrong.stop() == 0
    assert kept(store) == 1000 + int(share * 200)
    if is_fooled:
        # With a correct clock, everything works as before.
        assert retire(store, 90 * DAY) == 0
        assert not store.log.standstill().reason


def test_a_standstill_is_reported(
    new_database: str, tmp_path: Path, start: Callable[..., Any]
) -> None:
    """The server's log and the status over gRPC tell why retention stands still."""
    with closing(open_store(new_database)) as store:
        store.log.append([record(now() - n * DAY / 10) for n in range(800)])
        store.log.retire(90 * DAY, PLENTY)
    server = start(Policyd, tmp_path, "--log-retention", "7", database_url=new_database)
    deadline = time.monotonic() + 60
    while not any("stands still" in line for line in server.errors):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    token = (tmp_path / "admin-token").read_text().strip()
    with grpc.insecure_channel(server.admin) as channel:
        status = AdminServiceStub(channel).GetLogStatus(
            pb.GetLogStatusRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=30
        )
    assert "policyd logs retire --older-than 7d --yes" in status.retention_standstill
    assert status.retention_waiting > 400
    assert status.decisions == 800


class Readers:
    """Threads that read pages of the log all the time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._done = threading.Event()
        self.errors: list[str] = []
        self.pages = 0

    def _read(self) -> None:
        with closing(Store(self._url)) as store:
            while not self._done.is_set():
                try:
                    page = store.log.page(LogFilter(), limit=50)
                    if page:
                        store.log.page(LogFilter(key_id="key_1"), after=page[-1].id)
                    self.pages += 1
                except StoreUnavailable as error:
                    self.errors.append(str(error))

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._read) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()


@pytest.fixture
def days(postgresql: PostgreSQL) -> Iterator[tuple[str, Store]]:
    """A PostgreSQL whose log has forty days."""
    with postgresql.database() as url, closing(open_store(url)) as store:
        engine = open_engine(url)
        for n in range(0, 40, 8):
            make_days(engine, now() + n * DAY)
        with reading(engine) as connection:
            assert len(partitions(connection)) > 35
        engine.dispose()
        yield url, store


def midnight(n: int) -> datetime:
    return now().replace(hour=0, minute=0, second=0, microsecond=0) + n * DAY


def test_days_are_dropped(days: tuple[str, Store]) -> None:
    """Dropping a day fails neither readers nor writers.

    The rest of a day is deleted row by row, and so is what no day fits.
    """
    url, store = days
    entries = [record(midnight(n) + timedelta(hours=n % 24)) for n in range(-5, 35) for _ in "abc"]
    store.log.append([*entries, record(midnight(-400)), far := record(midnight(3000))])
    readers, engine = Readers(url), open_engine(url)
    with readers.running():
        for n in range(3, 30, 3):
            while store.log.expire(midnight(n) + timedelta(hours=12), PLENTY):
                pass
            store.log.append([record(midnight(n)), record(midnight(n + 1))])
    assert readers.errors == []
    assert readers.pages > 10
    while store.log.expire(midnight(31), PLENTY):
        pass
    with reading(engine) as connection:
        names = [one.name for one in partitions(connection)]
    assert f"decisions_p{midnight(30):%Y%m%d}" not in names
    assert f"decisions_p{midnight(31):%Y%m%d}" in names
    assert "decisions_old" not in names
    assert kept(store) == 1 + 3 * 4
    assert store.log.get(far.id) == far
    engine.dispose()


def test_a_kill_between_taking_a_day_out_and_dropping_it(days: tuple[str, Store]) -> None:
    """The next run drops the day, and counts its rows once."""
    url, store = days
    store.log.append([record(midnight(n)) for n in range(20) for _ in range(10)])
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        name = f"decisions_p{midnight(5):%Y%m%d}"
        connection.exec_driver_sql(f"ALTER TABLE decisions DETACH PARTITION {name}")
    engine.dispose()
    others = [Store(url) for _ in range(3)]
    threads = [threading.Thread(target=one.log.expire, args=(midnight(0), 999)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert kept(store) == 190


def test_a_day_that_was_not_made_in_time(postgresql: PostgreSQL) -> None:
    """Decisions of such a day are in the default partition, from which they move once the day is
    made."""
    with postgresql.database() as url, closing(open_store(url)) as store:
        store.log.append([record(midnight(20) + n * SECOND) for n in range(50)])
        engine = open_engine(url)
        make_days(engine, midnight(15))
        with reading(engine) as connection:
            where = "SELECT DISTINCT tableoid::regclass::text FROM decisions"
            found = connection.exec_driver_sql(where).scalars().all()
        assert found == [f"decisions_p{midnight(20):%Y%m%d}"]
        assert kept(store) == 50
        engine.dispose()


@pytest.mark.parametrize(
    "wanted",
    [
        LogFilter(),
        LogFilter(key_id="key_1"),
        LogFilter(end_user="ada"),
        LogFilter(any_id="t-1"),
        LogFilter(flag="invalid_override"),
    ],
    ids=str,
)
def test_pages_over_many_days(days: tuple[str, Store], wanted: LogFilter) -> None:
    """A page is read along the indexes of all days at once: no row is read that is not shown."""
    url, store = days
    store.log.append([record(midnight(n) + k * SECOND) for n in range(40) for k in range(60)])
    engine = open_engine(url)
    query = page_query(wanted, "f" * 32, "", 50)
    text = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")
        connection.exec_driver_sql("ANALYZE decisions")
        rows = connection.exec_driver_sql("EXPLAIN " + text.replace("%", "%%"))
        plan = "\n".join(str(row[0]) for row in rows)
    engine.dispose()
    assert "Seq Scan" not in plan, plan
    assert "Index" in plan, plan


@pytest.mark.slow
def test_it_holds_up_no_writer(tmp_path: Path) -> None:
    """On SQLite a key can be changed during the retention of many decisions, counts of users,
    counts of hours and refused keys, within a fraction of its time.
    """
    with closing(open_store(f"sqlite:///{tmp_path}/policyd.db")) as store:
        key, _ = store.keys.create("app")
        chance = random.Random(1)
        for day in range(10):
            at = now() - (500 + day) * DAY
            some = [
                record(at + n * SECOND, end_user=f"u{n}", key_id=f"k{n % 9}") for n in range(1000)
            ]
            store.log.append(some)
            store.log.append([denied(at), *(refused(at, chance) for _ in range(500))])
        done = threading.Event()

        def delete() -> None:
            while store.log.expire(now() - 10 * DAY, PLENTY):
                pass
            done.set()

        waits: list[float] = []
        thread = threading.Thread(target=delete)
        began = time.monotonic()
        thread.start()
        with closing(Store(f"sqlite:///{tmp_path}/policyd.db")) as other:
            while not done.is_set():
                asked = time.monotonic()
                other.keys.update(key.id, {"name": f"n{len(waits)}"})
                waits.append(time.monotonic() - asked)
                time.sleep(0.001)
        thread.join()
        took = time.monotonic() - began
        assert kept(store) == 0
        assert len(waits) > 20
        assert max(waits) < took / 4


def refused(at: datetime, chance: random.Random) -> RefusedKey | RefusedKeyCount:
    if chance.random() < 0.5:
        return RefusedKey(
            decision_id(at), RefusedKeyReason.UNKNOWN, "1.2.3.4", "", "", "", "", "", ""
        )
    minute = int(at.timestamp()) // 60
    return RefusedKeyCount(f"p{chance.random()}"[:32], minute, minute, "1.2.3.4", 1, 1, 1)
