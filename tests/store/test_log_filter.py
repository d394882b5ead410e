"""The log's filters, on every store: each gives exactly the decisions that it names."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from policyd.decision_log.record import Record, Verdict
from policyd.engine.states import UserState
from policyd.store import LogFilter, Store, log_pages
from tests.support.mixed_log import fill, is_failure
from tests.support.records import START, record

Wanted = Callable[[Record], bool]
CASES: dict[str, tuple[LogFilter, Wanted]] = {
    "model": (LogFilter(model="gpt-4o"), lambda one: one.model == "gpt-4o"),
    "IP": (LogFilter(source_ip="192.0.2.1"), lambda one: one.source_ip == "192.0.2.1"),
    "denial's status": (LogFilter(http_status=422), lambda one: one.status == 422),
    "answer's status": (
        LogFilter(http_status=404),
        lambda one: not one.status and one.outcome is not None and one.outcome.status == 404,
    ),
    "user contains": (
        LogFilter(user_contains="DA"),
        lambda one: one.end_user in ("ada", "ADA@example.com"),
    ),
    "beyond ASCII": (LogFilter(user_contains="ZOË"), lambda one: one.end_user in ("Zoë", "zoË")),
    "wildcard %": (LogFilter(user_contains="0%"), lambda one: one.end_user == "50%"),
    "only a wildcard": (LogFilter(user_contains="%"), lambda one: one.end_user == "50%"),
    "wildcard _": (LogFilter(user_contains="_"), lambda one: one.end_user == "bob_1"),
    "backslash": (LogFilter(user_contains="\\"), lambda one: one.end_user == "back\\slash"),
    "no user": (LogFilter(without_user=True), lambda one: not one.end_user),
    "attributed": (
        LogFilter(attributed=True),
        lambda one: one.in_scope and one.user_state is UserState.VALID,
    ),
    "not attributed": (
        LogFilter(attributed=False),
        lambda one: one.in_scope and one.user_state is not UserState.VALID,
    ),
    "failed": (LogFilter(failed=True), is_failure),
    "answered": (
        LogFilter(failed=False),
        lambda one: one.verdict is not Verdict.DENIED and not is_failure(one),
    ),
    "slow": (
        LogFilter(slower_us=2000),
        lambda one: one.outcome is not None and (one.outcome.duration_us or 0) >= 2000,
    ),
    "several": (
        LogFilter(model="gpt-4o", key_id="key_2", verdict=Verdict.ALLOWED, user_contains="a"),
        lambda one: (
            (one.model, one.key_id, one.verdict) == ("gpt-4o", "key_2", Verdict.ALLOWED)
            and "a" in one.end_user.lower()
        ),
    ),
    "with an index": (
        LogFilter(end_user="ada", source_ip="192.0.2.1"),
        lambda one: (one.end_user, one.source_ip) == ("ada", "192.0.2.1"),
    ),
}


def test_every_filter(store: Store) -> None:
    """Each filter gives the decisions that it names, whether they are read as a page, searched for
    in stretches of time, or visited one after the other.
    """
    made = fill(store)
    for name, (wanted, fits) in CASES.items():
        expected = [one for one in reversed(made) if fits(one)]
        assert expected, name
        assert store.log.page(wanted, limit=1000) == expected, name
        assert store.log.search(wanted, limit=1000) == (expected, ""), name
        middle = expected[len(expected) // 2]
        assert (
            store.log.search(wanted, after=middle.id, limit=3).records
            == [one for one in expected if one.id < middle.id][:3]
        ), name
        at = expected.index(middle)
        around = ["", *(one.id for one in expected), ""]
        assert store.log.neighbours(wanted, middle.id) == (around[at], around[at + 2]), name
    assert store.log.search(LogFilter(model="none")) == ([], "")


def test_a_search_that_stops(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search whose time is over tells how far it has come, and goes on from there until it has
    found everything."""
    made = fill(store, 150)
    monkeypatch.setattr(log_pages, "_SEARCH", 0)
    monkeypatch.setattr(log_pages, "_GROWS", 2)
    wanted = LogFilter(model="gpt-4o")
    found, after, searches = [], "", 0
    while True:
        some, reached = store.log.search(wanted, after=after, limit=1000)
        found += some
        searches += 1
        if not reached:
            break
        assert all(one.id > reached for one in some)
        after = reached
    assert [one.id for one in found] == [one.id for one in reversed(made) if one.model == "gpt-4o"]
    assert searches > 3


def test_decisions_of_one_moment(store: Store) -> None:
    """A search goes on after an ID, also among decisions of the same millisecond."""
    made = [record(model="gpt-4o") for _ in range(9)]
    store.log.append(made)
    wanted = LogFilter(model="gpt-4o", since=START, until=START + timedelta(milliseconds=1))
    found: list[Record] = []
    while some := store.log.search(wanted, after=found[-1].id if found else "", limit=2).records:
        found += some
    assert found == made[::-1]
    assert store.log.neighbours(wanted, made[4].id) == (made[5].id, made[3].id)
    assert store.log.search(LogFilter(model="gpt-4o", until=START)) == ([], "")


def test_an_empty_log(store: Store) -> None:
    """A search of an empty log comes to its end."""
    assert store.log.search(LogFilter(model="x")) == ([], "")
    assert store.log.neighbours(LogFilter(model="x"), "0" * 32) == ("", "")
