"""Servers compare moments by the database's clock, and a worker with a wrong clock reports it."""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from policyd.command.worker_clock import WorkerClock
from policyd.engine.settings import KeyChanges
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.store import LogFilter, Store
from policyd.store.clock import clock_offset, database_time
from policyd.store.database import reading
from policyd.store.engine import open_engine
from policyd.store.workers import furthest_off
from policyd.v1.policy_pb2 import EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.decision_log.test_refused_keys import log_status
from tests.support.databases import open_store
from tests.support.health import health_stub
from tests.support.processes import Policyd, run
from tests.support.raw_http import ask
from tests.support.wrong_clock import wrong_clock

DAY = timedelta(days=1)
AHEAD = 100 * DAY
NEAR = timedelta(minutes=5)
"""More than any machine of tests is slow, and far less than AHEAD."""


@pytest.fixture
def store(new_database: str) -> Any:
    with closing(open_store(new_database)) as store:
        yield store


def test_the_databases_time(store: Store, new_database: str) -> None:
    """The database's time is this moment, with its zone; a wait for it makes no clock wrong."""
    engine = open_engine(new_database)
    with reading(engine) as connection:
        assert abs(database_time(connection) - datetime.now(UTC)) < NEAR
        assert database_time(connection).tzinfo is UTC
        moment, offset = clock_offset(connection)
    assert abs(moment - datetime.now(UTC)) < NEAR
    assert abs(offset) < NEAR
    engine.dispose()


def test_workers_by_the_databases_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose clock is wrong hides no other one, is counted, and reports its clock skew."""
    store.workers.beat("right", "here", 3)
    with monkeypatch.context() as wrong:
        wrong.setattr("policyd.store.clock.now", lambda: datetime.now(UTC) + AHEAD)
        assert abs(store.workers.beat("wrong", "there", 3) - AHEAD) < NEAR
        assert {one.id for one in store.workers.list()} == {"right", "wrong"}
        wrong.setattr("policyd.store.clock.now", lambda: datetime.now(UTC) - AHEAD)
        assert abs(store.workers.beat("late", "elsewhere", 3) + AHEAD) < NEAR
    assert {one.id for one in store.workers.list()} == {"late", "right", "wrong"}
    host, offset = furthest_off(store.workers.list()) or ("", timedelta())
    assert host in ("elsewhere", "there")
    assert abs(abs(offset) - AHEAD) < NEAR


@pytest.mark.parametrize("age", [DAY / 24, -DAY / 24, 2 * DAY, -2 * DAY])
def test_beats_of_an_older_version(store: Store, new_database: str, age: timedelta) -> None:
    """An older version's beats use its own clock: one far from now is ignored, and deleted."""
    engine = open_engine(new_database)
    insert = sa.text(
        "INSERT INTO workers (id, host, revision, seen_at) VALUES ('old', 'host', 9, :seen_at)"
    ).bindparams(sa.bindparam("seen_at", type_=sa.DateTime(timezone=True)))
    with engine.begin() as connection:
        connection.execute(insert, {"seen_at": datetime.now(UTC) - age})
    assert store.workers.list() == []
    store.workers.beat("new", "host", 1)
    with engine.connect() as connection:
        left = set(connection.execute(sa.text("SELECT id FROM workers")).scalars())
    assert left == ({"new"} if abs(age) > DAY else {"new", "old"})
    engine.dispose()


def test_a_session_that_has_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose clock is ahead brings no session back to life."""
    store.administrator.end_session("one", DAY)
    for module in ("database", "clock"):
        monkeypatch.setattr(f"policyd.store.{module}.now", lambda: datetime.now(UTC) + AHEAD)
    store.administrator.end_session("two", DAY)
    assert store.administrator.has_ended("one")


def test_a_workers_clock(caplog: pytest.LogCaptureFixture) -> None:
    """A clock beyond the bound is corrected, and each change is logged once."""
    caplog.set_level(logging.INFO)
    clock = WorkerClock(5, lambda: 1000.0)
    for offset, right, lines in (
        (4.9, 1000, 0),
        (-4.9, 1000, 0),
        (60, 940, 1),
        (62, 938, 1),
        (8_640_000, 1000 - 8_640_000, 2),
        (-60, 1060, 3),
        (0.1, 1000, 4),
        (0.0, 1000, 4),
    ):
        clock.measured(timedelta(seconds=offset))
        assert clock.time() == pytest.approx(right)
        assert clock.is_wrong == (right != 1000)
        assert bool(clock.remark()) == clock.is_wrong
        assert len(caplog.records) == lines
    assert "60.0 s ahead of the database's" in caplog.messages[0]
    assert "60.0 s behind the database's" in caplog.messages[2]
    assert "right again" in caplog.messages[3]


async def test_a_machine_that_was_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a machine slept counts as staleness."""
    table = StoredKeyTable(lambda *_: KeyChanges(1, ()))
    await table.refresh()
    assert table.staleness() < 60
    now = table_clock()
    monkeypatch.setattr("policyd.keys.key_table.seconds", lambda: now + 8 * 3600)
    assert table.staleness() > 7 * 3600
    await table.refresh()
    assert table.staleness() < 60


def table_clock() -> float:
    from policyd.keys import key_table

    return key_table.seconds()


def ask_policyd(server: Policyd, key: str, trace_id: str) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        request = EvaluateRequest(key=key, has_user=False, trace_id=trace_id)
        PolicyServiceStub(channel).Evaluate(request, timeout=30)


def clock_health(server: Policyd) -> int:
    with grpc.insecure_channel(server.grpc) as channel:
        asked = HealthCheckRequest(service="policyd.clock")
        return int(health_stub(channel).Check(asked, timeout=30).status)


@pytest.mark.parametrize("days", [100, -100])
async def test_one_clock_that_is_wrong(
    new_database: str, tmp_path: Path, start: Callable[..., Any], days: int
) -> None:
    """If one of two servers on a database has a wrong clock, both run and are counted. That server
    reports its clock, and the decisions of both carry the present time."""
    right_folder, wrong_folder = tmp_path / "right", tmp_path / "wrong"
    for folder in (right_folder, wrong_folder):
        folder.mkdir()
    env = wrong_clock(tmp_path / "site", days * 86400)
    right = start(Policyd, right_folder, database_url=new_database)
    http = ("--http", "127.0.0.1:0")
    wrong = start(Policyd, wrong_folder, *http, database_url=new_database, env=env)
    key = right.create_key("enforce")
    with closing(Store(new_database)) as store:
        # The other server has yet to follow the key: until then the key is unknown there.
        wrong.reach(store.keys.changes_since(0).revision)
        for number in range(20):
            for server in (right, wrong):
                await asyncio.to_thread(ask_policyd, server, key, f"one-{server.pid}-{number}")
        side = "ahead of" if days > 0 else "behind"
        [line] = [one for one in wrong.errors if "the clock of this machine" in one]
        assert f"{abs(days) * 86400}.0 s {side} the database's" in line
        assert not any("the clock of this machine" in one for one in right.errors)
        answer = await ask(f"http://{wrong.http}", "GET", "/readyz")
        assert answer.status == 200
        assert f"s {side} the database's" in json.loads(answer.body)["remark"]
        assert clock_health(wrong) == HealthCheckResponse.NOT_SERVING
        assert clock_health(right) == HealthCheckResponse.SERVING
        told = await log_status(right)
        assert abs(told.clock_offset.ToTimedelta() - timedelta(days=days)) < NEAR
        assert told.clock_host
        shown = run("policyd", "logs", "status", "--json", "--database-url", new_database)
        assert abs(json.loads(shown.stdout)["clock_offset"] - days * 86400) < NEAR.total_seconds()
        assert len(store.workers.list()) == 2
        assert [right.stop(), wrong.stop()] == [0, 0]
        logged = store.log.page(LogFilter(), limit=1000)
    assert len(logged) == 40
    assert all(abs(one.time - datetime.now(UTC)) < NEAR for one in logged)
