"""Statistics of the log, on every store: each equals a plain count over the decisions listed."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.decision_log.record import MAX_TIME, Record, Verdict, first_id
from policyd.store import Counts, Latencies, LogFilter, Store
from policyd.store.latencies import mark
from tests.support.mixed_log import fill
from tests.support.records import START, outcome, record

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LISTED: dict[str, dict[str, Any]] = {
    "requests": {},
    "denied": {"verdict": Verdict.DENIED},
    "would_deny": {"verdict": Verdict.WOULD_DENY},
    "attributed": {"attributed": True},
    "unattributed": {"attributed": False},
    "errors": {"failed": True},
    "timed": {"slower_us": 0},
}
"""The filter that lists what each of Counts counts."""
SUMS: dict[str, Callable[[Any], int | None]] = {
    "input_tokens": lambda told: told.input_tokens,
    "output_tokens": lambda told: told.output_tokens,
    "cost_nano": lambda told: told.cost_nano,
    "duration_us": lambda told: told.duration_us,
}


def _listed(store: Store, since: datetime, until: datetime, **wanted: Any) -> list[Record]:
    return store.log.page(LogFilter(since=since, until=until, **wanted), limit=10_000)


def _expected(store: Store, since: datetime, until: datetime, **wanted: Any) -> dict[str, int]:
    """The counts, from the decisions that filters list."""
    found = {
        name: len(_listed(store, since, until, **(wanted | more))) for name, more in LISTED.items()
    }
    every = _listed(store, since, until, **wanted)
    for name, read in SUMS.items():
        found[name] = sum(read(one.outcome) or 0 for one in every if one.outcome)
    return found


def _told(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in (*LISTED, *SUMS)}


@pytest.mark.slow
@pytest.mark.parametrize("key_id", ["", "key_2"])
def test_counts_of_what_is_listed(store: Store, key_id: str) -> None:
    """The counts of hours, keys, models and users are those of what the filters list."""
    fill(store, 400, step=timedelta(minutes=3))
    since, until = START + 2 * HOUR, START + 17 * HOUR
    last = until - timedelta(seconds=1)
    of_key = {"key_id": key_id} if key_id else {}
    hours = store.statistics.hours(since, last, key_id)
    assert len(hours) == 15
    for at, counts in hours[::5]:
        assert _told(counts) == _expected(store, at, at + HOUR, **of_key)
    for key, counts in store.statistics.keys(since, last):
        assert _told(counts) == _expected(store, since, until, key_id=key)
    models = store.statistics.models(since, last, key_id=key_id)
    names = Counter(one.model for one in _listed(store, since, until, **of_key))
    assert {model: counts.requests for model, counts in models} == names
    assert [counts.requests for _, counts in models] == sorted(names.values(), reverse=True)
    named = {model: counts for model, counts in models if model}
    for model, counts in named.items():
        assert _told(counts) == _expected(store, since, until, model=model, **of_key)
    midnight = START.replace(hour=0)
    users = dict(store.statistics.users(midnight, midnight, key_id=key_id))
    for user in ("ada", ""):
        one = {"end_user": user} if user else {"without_user": True}
        expected = _expected(store, midnight, midnight + DAY, **one, **of_key)
        assert _told(users[user]) == expected


@pytest.mark.parametrize("key_id", ["", "key_2"])
def test_latencies_of_what_is_listed(store: Store, key_id: str) -> None:
    """A percentile is at most 9.1 % above the true one, and beyond it are the requests that the
    filter of slow ones lists."""
    fill(store, 400, step=timedelta(minutes=3))
    since, until = START, START + 20 * HOUR
    of_key = {"key_id": key_id} if key_id else {}
    found = store.statistics.latencies(since, until - timedelta(seconds=1), 5 * HOUR, key_id=key_id)
    assert list(found) == [since + n * 5 * HOUR for n in range(4)]
    for at, latencies in found.items():
        end = at + 5 * HOUR
        listed = _listed(store, at, end, slower_us=0, **of_key)
        times = sorted(one.outcome.duration_us or 0 for one in listed if one.outcome)
        assert latencies.timed == len(times)
        for share in (0.5, 0.95, 0.99):
            told = latencies.percentile(share)
            assert told is not None
            slower = _listed(store, at, end, slower_us=told, **of_key)
            assert latencies.longer(told) == len(slower) <= (1 - share) * len(times)
            true = times[-(-len(times) * round(100 * share) // 100) - 1]
            assert true < told <= max(true * 2 ** (1 / 8) + 1, 1024)


@given(st.integers(0, MAX_TIME))
def test_marks(microseconds: int) -> None:
    """Every length is below its mark, which is at most 9.1 % above it from a millisecond on."""
    above = mark(microseconds)
    assert microseconds < above <= max(microseconds * 2 ** (1 / 8) + 1, 1024)
    assert mark(above) > above


def test_no_latencies() -> None:
    """Without requests there is no percentile."""
    assert Latencies().percentile(0.5) is None
    assert Latencies().longer(0) == 0


def test_what_was_retired(store: Store) -> None:
    """Counts of models and latencies go with the decisions, an hour at a time."""
    made = [record(START + n * HOUR) for n in range(4)]
    store.log.append([*made, *(outcome(one, duration_us=5000) for one in made)])
    assert store.log.expire(START + 2 * HOUR, 10**6) == 2
    [(_, counts)] = store.statistics.models(START, START + DAY)
    assert counts.requests == 2
    times = store.statistics.latencies(START, START + DAY, HOUR)
    assert list(times) == [START + 2 * HOUR, START + 3 * HOUR]
    assert first_id(START) < made[0].id
