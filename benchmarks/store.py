"""The queries of the console and of `policyd logs`, over a log of many rows."""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.rounds import Plan, table
from policyd.decision_log.record import Outcome, Record, Verdict
from policyd.engine.settings import KeySettings
from policyd.engine.states import Mode
from policyd.policies import TABLE
from policyd.simulation import simulate
from policyd.store import LogFilter, Store
from tests.support.postgresql import PostgreSQL
from tests.support.records import denied, outcome, record

_DAYS = 30
_KEYS = [f"key_{number:016x}" for number in range(20)]
_USERS = 250
"""Users of each key."""
_OPERATIONS = ("chat_completion", "embedding", "response")
_AGENTS = tuple(f"client/{number}" for number in range(30))
_BATCH = 5000
_CALLS_A_ROUND = 20
Ask = Callable[[], object]


async def run(folder: Path, plan: Plan) -> str:
    """Measure, and give the result as Markdown. `folder` is for the databases."""
    rows = plan.rows
    found = []
    for name, store in _stores(folder):
        began = time.monotonic()
        _fill(store, rows)
        sys.stderr.write(f"  {rows} rows in {name} after {time.monotonic() - began:.0f} s\n")
        found.append((name, _measure(store, plan)))
    names = [name for name, _ in found]
    columns = ["asked for", *(f"{name} {share} ms" for name in names for share in ("p50", "p99"))]
    lines = [
        (asked, *(f"{1e3 * value:.1f}" for _, each in found for value in each[asked]))
        for asked in found[0][1]
    ]
    return table(f"The log with {rows:,} rows", columns, lines)


def _stores(folder: Path) -> Iterator[tuple[str, Store]]:
    with _opened(f"sqlite:///{folder}/store.db") as store:
        yield "SQLite", store
    with PostgreSQL() as server, server.database() as url, _opened(url) as store:
        yield "PostgreSQL", store


@contextmanager
def _opened(url: str) -> Iterator[Store]:
    store = Store(url)
    store.migrate()
    try:
        yield store
    finally:
        store.close()


def _fill(store: Store, rows: int) -> None:
    chance = random.Random(1)  # keeps no secret
    step = timedelta(days=_DAYS) / rows
    begin = datetime.now(UTC) - timedelta(days=_DAYS)
    for start in range(0, rows, _BATCH):
        entries: list[Record | Outcome] = []
        for number in range(start, min(start + _BATCH, rows)):
            entries += _entries(chance, begin + number * step, number)
        store.log.append(entries)


def _entries(chance: random.Random, at: datetime, number: int) -> list[Record | Outcome]:
    key = chance.randrange(len(_KEYS))
    given = {
        "key_id": _KEYS[key],
        "operation": chance.choice(_OPERATIONS),
        "user_agent": chance.choice(_AGENTS),
        "trace_id": f"trace-{number // 3}",
    }
    if chance.random() < 0.1:
        return [denied(at, **given)]
    allowed = record(at, end_user=_user(chance, key), **given)
    return [allowed, outcome(allowed)]


def _user(chance: random.Random, key: int) -> str:
    """One of the key's users: a few send many requests, and many send a few."""
    return f"user-{key}-{int(_USERS * chance.random() ** 2)}"


def _measure(store: Store, plan: Plan) -> dict[str, tuple[float, float]]:
    """Seconds that half of the calls, and 99 of 100, took at most."""
    found = {}
    for name, ask in _asks(store).items():
        ask()  # Warming up.
        taken = sorted(_seconds(ask) for _ in range(plan.rounds * _CALLS_A_ROUND))
        found[name] = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    return found


def _seconds(ask: Ask) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def _asks(store: Store) -> dict[str, Ask]:
    chance = random.Random(2)  # keeps no secret
    now = datetime.now(UTC)

    def key() -> str:
        return chance.choice(_KEYS)

    def day() -> datetime:
        return now - timedelta(days=chance.uniform(1, _DAYS))

    def page(**wanted: Any) -> object:
        return store.log.page(LogFilter(**wanted))

    month, week = now - timedelta(days=_DAYS), now - timedelta(days=7)
    settings = KeySettings(_KEYS[0], TABLE.with_original(Mode.ENFORCE))
    return {
        "the newest": page,
        "of a key": lambda: page(key_id=key()),
        "blocked": lambda: page(verdict=Verdict.DENIED),
        "blocked, of a key": lambda: page(key_id=key(), verdict=Verdict.DENIED),
        "with a flag": lambda: page(flag="policy_enforce_user_ids"),
        "with a flag that none has": lambda: page(flag="invalid_override"),
        "of an operation": lambda: page(operation=chance.choice(_OPERATIONS)),
        "of a user": lambda: page(end_user=_user(chance, 3)),
        "of a trace": lambda: page(trace_id=f"trace-{chance.randrange(1000)}"),
        "before some day": lambda: page(until=day()),
        "of a key and a user": lambda: page(key_id=_KEYS[3], end_user=_user(chance, 3)),
        "end users of a week": lambda: store.statistics.users(week, now),
        "end users of a month, by cost": lambda: store.statistics.users(month, now, sort="cost"),
        "hours of a month": lambda: store.statistics.hours(month, now),
        "keys of a month": lambda: store.statistics.keys(month, now),
        "how the log is": store.log.status,
        "simulation of 24 h": lambda: simulate(
            store, key(), settings, now - timedelta(days=1), now, ()
        ),
        "simulation of 7 days": lambda: simulate(store, key(), settings, week, now, ()),
    }
