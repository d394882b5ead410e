"""The decision log's acceptance suite, which every store passes."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.decision_log.record import Ending, Outcome, Record, Verdict, is_decision_id, moment
from policyd.engine.states import Source, UserState
from policyd.errors import DecisionNotFound
from policyd.store import Counts, LogFilter, Store
from policyd.store.engine import open_engine
from policyd.store.log_pages import flag_sets_query, page_query
from policyd.store.statistics import SORTS
from tests.support.records import START, denied, outcome, record

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
EVERYTHING = LogFilter()


def test_a_decision_and_its_outcome(store: Store) -> None:
    """A decision and its outcome are read as they were written, whichever came first."""
    first, second = record(), denied()
    store.log.append([first, second, outcome(first)])
    assert store.log.get(first.id) == msgspec.structs.replace(first, outcome=outcome(first))
    assert store.log.get(second.id) == second


def test_no_such_decision(store: Store) -> None:
    """A lookup of an unknown ID finds nothing, whatever the ID looks like."""
    for unknown in ("", "f" * 32, "x\0y", "'; --"):
        with pytest.raises(DecisionNotFound):
            store.log.get(unknown)


def test_appended_again(store: Store) -> None:
    """A decision that is there already changes nothing, alone or among others, and counts once."""
    entries = [record(), denied()]
    reported = outcome(entries[0])
    store.log.append([*entries, reported])
    store.log.append([*entries, reported, record()])
    store.log.append([outcome(entries[0], status=500, input_tokens=99)])
    assert store.log.status().decisions == len(store.log.page(EVERYTHING)) == 3
    assert store.log.get(entries[0].id).outcome == reported
    [(_, counts)] = store.statistics.hours(START, START)
    assert (counts.requests, counts.input_tokens) == (3, 10)


def test_an_outcome_that_comes_first(store: Store) -> None:
    """An outcome that comes first waits for its decision."""
    late, later = record(), record()
    store.log.append([outcome(late)])
    store.log.append([outcome(later), late])
    store.log.append([later])
    assert all(one.outcome for one in store.log.page(EVERYTHING))
    [(_, counts)] = store.statistics.hours(START, START)
    assert counts.output_tokens == 10


def _log_of(key_id: str) -> list[Record | Outcome]:
    """Decisions of a key, of all kinds, and the outcomes of those that were allowed."""
    made = [
        make(
            START + number * HOUR / 5,
            key_id=key_id,
            end_user=user,
            model=f"model-{number % 3}",
            in_scope=number % 7 != 0,
            user_state=UserState.VALID if user else UserState.ABSENT,
        )
        for number, (make, user) in enumerate(
            itertools.product((record, denied), ("ada", "", "undefined", 'a"b\\c,{d}\t\n'))
        )
    ]
    told = [
        outcome(one, status=500 if number == 2 else 200, duration_us=10**number)
        for number, one in enumerate(made)
        if not one.status
    ]
    return [*made, *told]


def _halves(entries: list[Record | Outcome]) -> list[list[Record | Outcome]]:
    decided: list[Record | Outcome] = [one for one in entries if isinstance(one, Record)]
    return [decided, [one for one in entries if isinstance(one, Outcome)]]


@pytest.mark.parametrize(
    "split",
    [
        lambda entries: [entries[::-1]],
        _halves,
        lambda entries: _halves(entries)[::-1],
        lambda entries: [[one] for one in entries],
        lambda entries: [entries[::2], entries[1::2], entries],
    ],
    ids=["turned round", "decisions first", "outcomes first", "one by one", "every other one"],
)
def test_the_order_of_arrival(store: Store, split: Callable[..., Any]) -> None:
    """However entries are spread over transactions, the log and all counts of it are the same as
    where decisions come together with their outcomes."""
    store.log.append(_log_of("at-once"))
    for some in split(_log_of("spread")):
        store.log.append(some)
    assert _all_of(store, "spread") == _all_of(store, "at-once")
    assert len(store.log.page(LogFilter(key_id="spread"))) == 8


def _all_of(store: Store, key_id: str) -> tuple[object, ...]:
    """All that is counted and logged of a key, but for its IDs."""
    period, of = (START, START + DAY), store.statistics
    logged = [
        (row.outcome and row.outcome.duration_us, row.end_user, row.verdict)
        for row in store.log.page(LogFilter(key_id=key_id))
    ]
    hours, users = of.hours(*period, key_id), of.users(*period, key_id=key_id)
    latencies = of.latencies(*period, HOUR, key_id=key_id)
    return logged, hours, users, of.models(*period, key_id=key_id), latencies


def test_outcomes_of_one_moment(store: Store) -> None:
    """Two servers that append at the same time leave no outcome waiting for long."""
    entries = [record() for _ in range(200)]
    halves = [entries, [outcome(one) for one in entries]]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(store.log.append, halves))
    store.log.expire(START - DAY, 10**6)
    assert all(one.outcome for one in store.log.page(EVERYTHING, limit=200))


def test_two_servers_with_one_outcome(url: str, store: Store) -> None:
    """A gateway that repeats a report may reach another server: the outcome is counted once."""
    entries = [record() for _ in range(300)]
    store.log.append(entries)
    reports = [outcome(one) for one in entries]
    with closing(Store(url)) as other, ThreadPoolExecutor(2) as threads:
        for start in range(0, 300, 10):
            some = reports[start : start + 10]
            list(threads.map(lambda one: one.log.append(some), (store, other)))  # noqa: B023  # The threads end in this turn.
    [(_, counts)] = store.statistics.hours(START, START)
    assert counts.input_tokens == 3000


def test_hostile_texts(store: Store) -> None:
    """Every text is kept as it is, but for NUL, which PostgreSQL cannot keep."""
    text = "<script>alert(1)</script>\u202e\x1b[31m\n'\"\\ =cmd|' /C calc'!A0 \U0001f600"
    store.log.append([kept := record(user_agent=text, end_user=text, model="a\0b")])
    found = store.log.get(kept.id)
    assert (found.user_agent, found.end_user, found.model) == (
        text,
        text,
        "a\N{REPLACEMENT CHARACTER}b",
    )
    assert [one.id for one in store.log.page(LogFilter(end_user=text))] == [kept.id]


def test_pages(store: Store) -> None:
    """The newest come first.

    Each page goes on where the one before ended, and newer decisions can be read.
    """
    entries = [record(START + timedelta(seconds=n)) for n in range(10)]
    store.log.append(entries)
    newest = entries[::-1]
    page = store.log.page(EVERYTHING, limit=4)
    assert page == newest[:4]
    store.log.append([record(START + HOUR)])
    assert store.log.page(EVERYTHING, after=page[-1].id, limit=4) == newest[4:8]
    assert len(store.log.page(EVERYTHING, newer_than=newest[0].id)) == 1


def test_filters(store: Store) -> None:
    """Each filter selects what it names, and several select the decisions that fit them all."""
    audited = record(
        verdict=Verdict.WOULD_DENY, flags="policy_enforce_user_ids,invalid_override", key_id="key_2"
    )
    blocked = denied(trace_id="t-1", operation="embedding")
    odd = record(START + HOUR, flags="invalid_override", end_user="bob")
    plain = record(START + 2 * HOUR)
    store.log.append([plain, audited, odd, blocked])

    def found(**wanted: Any) -> list[Record]:
        return store.log.page(LogFilter(**wanted))

    assert found(verdict=Verdict.DENIED) == [blocked]
    assert found(flag="policy_enforce_user_ids") == [blocked, audited]
    assert found(flag="invalid_override") == [odd, audited]
    assert found(flag="invalid_override", key_id="key_1") == [odd]
    assert found(flag="no_such_flag") == []
    assert found(key_id="key_2") == [audited]
    assert found(key_id="key_1", verdict=Verdict.ALLOWED) == [plain, odd]
    assert found(operation="embedding") == found(trace_id="t-1") == [blocked]
    assert found(end_user="bob", since=START) == [odd]
    assert found(since=START + HOUR, until=START + 2 * HOUR) == [odd]
    assert found(end_user="b\0ob") == [odd]


def test_sets_of_flags(store: Store) -> None:
    """A flag is found in every set of flags that there is, however many those are."""
    flags = [f"flag_{number}" for number in range(7)]
    sets = [
        ",".join(one for number, one in enumerate(flags) if chosen >> number & 1)
        for chosen in range(1, 2**7)
    ]
    entries = [record(START + timedelta(seconds=n), flags=one) for n, one in enumerate(sets)]
    store.log.append([*entries, record(START + HOUR)])
    wanted = [one for one in entries if "flag_3" in one.flags.split(",")]
    assert store.log.page(LogFilter(flag="flag_3"), limit=100) == wanted[::-1]
    assert store.log.page(LogFilter(flag="flag_3"), limit=5, after=wanted[9].id) == wanted[8:3:-1]
    assert store.log.page(LogFilter(flag="flag")) == []


def test_violations_of_a_policy(store: Store) -> None:
    """The log is filtered by the policy that a request violates, and by two at once."""
    both = denied(flags="policy_max_tokens,policy_enforce_user_ids")
    one = denied(flags="policy_max_tokens")
    store.log.append([record(), denied(), one, both])
    assert store.log.page(LogFilter(policy="max_tokens")) == [both, one][::-1]
    assert store.log.page(LogFilter(policy="max_tokens", flag="policy_enforce_user_ids")) == [both]
    assert store.log.page(LogFilter(policy="user_format")) == []


def test_flags_are_found_along_the_index(url: str, store: Store) -> None:
    """The sets of flags are read from the index, one entry of each."""
    kinds = ("", "", "", "a", "a,b")
    store.log.append([record(flags=kinds[number % 5]) for number in range(3000)])
    engine = open_engine(url)
    text = str(flag_sets_query().compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            plan = [str(row[3]) for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + text)]
            steps = [line for line in plan if "decisions" in line]
            assert len(steps) == 2, plan
            assert all("SEARCH decisions USING COVERING INDEX ix_" in step for step in steps), plan
        else:
            connection.exec_driver_sql("SET enable_seqscan = off")
            connection.exec_driver_sql("ANALYZE decisions")
            lines = "\n".join(str(row[0]) for row in connection.exec_driver_sql("EXPLAIN " + text))
            assert "Seq Scan" not in lines, lines
            assert "flags_id_idx" in lines, lines
        assert list(connection.execute(flag_sets_query()).scalars()) == ["a", "a,b"]
    engine.dispose()


def test_counts(store: Store) -> None:
    """Requests, blocks, attribution, tokens and cost are counted by hour, key, user and day."""
    first, other = record(), record(START + DAY, end_user="bob", key_id="key_2")
    outside = record(in_scope=False, user_state=UserState.UNKNOWN, end_user="")
    refused = denied(key_id="", mode=None, in_scope=False, flags="", user_state=UserState.UNKNOWN)
    audited = denied(verdict=Verdict.WOULD_DENY)
    store.log.append([first, other, outside, refused, audited, denied()])
    store.log.append([outcome(first), outcome(other, output_tokens=None, cost_nano=None)])
    hours = store.statistics.hours(START, START + DAY)
    assert [at for at, _ in hours] == [START, START + DAY]
    assert hours[0][1] == Counts(4, 1, 1, 1, 2, 10, 5, 4500, flagged=2)
    assert store.statistics.hours(START, START + DAY, "key_2")[0][1] == hours[1][1]
    assert [key for key, _ in store.statistics.keys(START, START + DAY)] == ["key_1", "key_2"]
    users = dict(store.statistics.users(START, START + DAY))
    assert users == {
        "ada": Counts(1, 0, 0, 1, 0, 10, 5, 4500),
        "bob": Counts(1, 0, 0, 1, 0, 10, 0, 0),
        "": Counts(3, 1, 1, 0, 2, 0, 0, 0, flagged=2),
    }
    assert [user for user, _ in store.statistics.users(START, START, key_id="key_1")] == ["", "ada"]


def test_counts_of_what_became(store: Store) -> None:
    """Errors, flags and latency are counted for each user from the reported outcomes."""
    ends = [
        {"status": 200, "duration_us": 1000},
        {"status": 404, "duration_us": 3000},
        {"status": 200, "ending": Ending.UPSTREAM_BROKE},
        {"status": 0, "ending": Ending.NO_ANSWER},
        {"status": 200, "ending": Ending.CLIENT_LEFT},
    ]
    entries = [record(flags="invalid_override") for _ in ends]
    store.log.append(entries)
    store.log.append([outcome(one, **end) for one, end in zip(entries, ends, strict=True)])
    for [(_, counts)] in (
        store.statistics.users(START, START),
        store.statistics.hours(START, START),
    ):
        assert (counts.flagged, counts.errors, counts.timed) == (5, 3, 2)
        assert counts.latency_us == 2000


def test_counts_of_placeholders(store: Store) -> None:
    """Placeholders are counted, with their values and keys."""
    store.log.append([record(end_user="undefined", key_id="key_2") for _ in range(3)])
    store.log.append([record(end_user="{{user}}"), record(), record(in_scope=False)])
    assert store.statistics.placeholders(START, START) == [
        ("undefined", "key_2", 3),
        ("{{user}}", "key_1", 1),
    ]
    assert store.statistics.placeholders(START, START, limit=1) == [("undefined", "key_2", 3)]
    assert store.statistics.placeholders(START + DAY, START + DAY) == []
    [(_, counts)] = store.statistics.hours(START, START)
    assert (counts.placeholders, counts.attributed) == (4, 5)


def test_refused_keys_of_an_older_policyd(store: Store) -> None:
    """Refused keys of an older policyd stay in the log, and are no denials."""
    refused = denied(key_id="", mode=None, source=None, in_scope=False, status=403)
    store.log.append([blocked := denied(), refused, outcome(refused)])
    assert store.log.page(LogFilter(verdict=Verdict.DENIED)) == [blocked]
    assert len(store.log.page(EVERYTHING)) == 2
    [(_, counts)] = store.statistics.hours(START, START)
    assert (counts.requests, counts.denied) == (1, 1)


def test_usage(store: Store) -> None:
    """The usage gives the models and keys of each user's newest requests, commonest first."""
    at = [START + timedelta(seconds=n) for n in range(6)]
    models = ("old", "b", "a", "a", "")
    store.log.append([record(t, model=m) for t, m in zip(at, models, strict=False)])
    store.log.append([record(at[5], model="c", key_id="key_2"), record(end_user="bob")])
    used = store.log.usage(["ada", "bob", "", "no'body"], limit=5)
    assert used["ada"] == (["a", "c", "b"], ["key_1", "key_2"])
    assert used["bob"] == (["gpt-4o-mini"], ["key_1"])
    assert used["no'body"] == ([], [])
    assert store.log.usage(["ada"], key_id="key_2")["ada"] == (["c"], ["key_2"])
    assert store.log.usage([""]) == {}


def test_found_by_any_id(store: Store) -> None:
    """A request is found by its decision, the caller's ID of it, its trace and OpenAI's ID."""
    one = record(START, request_id="req-1", trace_id="t-1", flags="invalid_override")
    other = denied(START + HOUR, request_id="t-1", trace_id="t-1")
    store.log.append([one, other, record(), outcome(one, openai_id="chatcmpl-1")])

    def found(any_id: str, **wanted: Any) -> list[str]:
        page = store.log.page(LogFilter(any_id=any_id, **wanted))
        return [each.id for each in page]

    assert found(one.id) == found("req-1") == found("chatcmpl-1") == [one.id]
    assert found("t-1") == [other.id, one.id]
    assert found("t-1", verdict=Verdict.DENIED) == [other.id]
    assert found("t-1", flag="invalid_override") == [one.id]
    assert found("t-1", flag="no_such_flag") == found("nothing") == found("\0") == []


def test_counts_that_are_too_large(store: Store) -> None:
    """A sum beyond the database's numbers stops no appending."""
    for _ in range(3):
        store.log.append([one := record(), outcome(one, cost_nano=4 * 10**18)])
    [(_, counts)] = store.statistics.hours(START, START)
    assert (counts.requests, counts.cost_nano) == (3, 2**62)


def test_users_in_order(store: Store) -> None:
    """Users can be sorted by every column, in pages."""
    store.log.append([record(end_user=f"user-{n % 5}") for n in range(15)])
    for sort in SORTS:
        everyone = store.statistics.users(START, START, sort=sort)
        paged = [
            one
            for n in (0, 2, 4)
            for one in store.statistics.users(START, START, sort=sort, offset=n, limit=2)
        ]
        assert paged == everyone
    names = [user for user, _ in store.statistics.users(START, START, sort="user")]
    assert names == sorted(names, reverse=True)


def test_retention(store: Store) -> None:
    """Retention deletes what is too old, and then the oldest of what is too much.

    The hourly counts stay.
    """
    old = [record(START + timedelta(minutes=n)) for n in range(10)]
    young = [record(START + DAY + timedelta(minutes=n), end_user="bob") for n in range(10)]
    store.log.append(old + young)
    assert store.log.expire(START + timedelta(minutes=4), 10**6) == 4
    assert store.log.page(EVERYTHING, limit=20)[-1] == old[4]
    assert store.log.expire(START, 5) == 11
    assert store.log.page(EVERYTHING) == young[:4:-1]
    assert store.log.expire(START, 5) == 0
    assert store.log.status().decisions == 5
    assert store.log.status().oldest == young[5].time
    assert [user for user, _ in store.statistics.users(START, START + DAY)] == ["bob"]
    assert sum(counts.requests for _, counts in store.statistics.hours(START, START + DAY)) == 20


def test_two_servers_retire(url: str, store: Store) -> None:
    """Rows that both servers find too old are subtracted from the count once."""
    with closing(Store(url)) as other, ThreadPoolExecutor(2) as threads:
        for _ in range(10):
            store.log.append([record() for _ in range(100)])
            list(threads.map(lambda one: one.log.expire(START + DAY, 0), (store, other)))
    assert store.log.status().decisions == len(store.log.page(EVERYTHING)) == 0


def test_lost_decisions(store: Store) -> None:
    """The losses of all processes add up to one number, however often each reports its own."""
    store.log.lose({"a": 2, "b": 3})
    store.log.lose({"a": 4})
    assert store.log.status().lost == 7


def test_workers(store: Store) -> None:
    """The store lists the running workers, and the revision of each."""
    store.workers.beat("w1", "host", 3)
    store.workers.beat("w2", "host", 4)
    store.workers.beat("w1", "host", 5)
    assert [(one.id, one.revision) for one in store.workers.list()] == [("w1", 5), ("w2", 4)]
    store.workers.leave("w2")
    assert [one.id for one in store.workers.list()] == ["w1"]


def test_history(store: Store) -> None:
    """Requests that were alike are one kind, whichever client sent them.

    Those of a route are left out.
    """
    store.log.append([record(), record(end_user="bob"), denied(), record(START + DAY)])
    store.log.append([denied(source=Source.ROUTE), denied(model="b"), denied(key_id="key_2")])
    history = store.history("key_1", START, START + DAY)
    groups = {(group.kind.body_user, group.kind.model): group for group in history.groups()}
    counts = {which: group.requests for which, group in groups.items()}
    assert counts == {(1, "gpt-4o-mini"): 2, (2, "gpt-4o-mini"): 1, (2, "b"): 1}
    absent = [group.kind for which, group in groups.items() if which[0] == UserState.ABSENT]
    assert [one.model for one in history.newest(absent, 5)] == ["b", "gpt-4o-mini"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted",
    [
        EVERYTHING,
        LogFilter(key_id="key_1"),
        LogFilter(key_id="key_1", verdict=Verdict.DENIED),
        LogFilter(verdict=Verdict.DENIED),
        LogFilter(flag="invalid_override"),
        LogFilter(operation="embedding"),
        LogFilter(end_user="ada"),
        LogFilter(trace_id="t-1"),
        LogFilter(trace_id="t-1", key_id="key_1", verdict=Verdict.DENIED),
        LogFilter(end_user="bob", key_id="key_1", verdict=Verdict.ALLOWED),
        LogFilter(any_id="t-1"),
        LogFilter(any_id="t-1", key_id="key_1", verdict=Verdict.DENIED),
        LogFilter(since=START, until=START + DAY),
    ],
    ids=str,
)
def test_query_plans(url: str, store: Store, wanted: LogFilter) -> None:
    """A page of the log is read along an index: nothing is scanned from end to end, or sorted."""
    store.log.append([record(START + timedelta(seconds=n), trace_id=f"t{n}") for n in range(3000)])
    engine = open_engine(url)
    flag_sets = ["invalid_override", "policy_enforce_user_ids,invalid_override"]
    query = page_query(wanted, "f" * 32, "", 50, flag_sets if wanted.flag else ())
    text = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            rows = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + text)
            plan = "\n".join(str(row[3]) for row in rows)
            steps = [line for line in plan.splitlines() if "decisions" in line]
            assert steps, plan
            assert all("USING" in step for step in steps), plan
            # Rows that are merged from several flags are sorted: a few pages at most.
            assert wanted.flag or wanted.any_id or "TEMP B-TREE" not in plan, plan
            assert not wanted.trace_id or "ix_decisions_trace" in plan, plan
            for index in ("request", "trace", "openai") if wanted.any_id else ():
                assert f"ix_decisions_{index} " in plan, plan
            assert wanted.end_user != "bob" or "ix_decisions_end_user" in plan, plan
        else:
            connection.exec_driver_sql("SET enable_seqscan = off")
            connection.exec_driver_sql("ANALYZE decisions")
            rows = connection.exec_driver_sql("EXPLAIN " + text.replace("%", "%%"))
            plan = "\n".join(str(row[0]) for row in rows)
            assert "Seq Scan on decisions" not in plan, plan
            assert "Index" in plan, plan
    engine.dispose()


def test_ids() -> None:
    """Only an ID with a possible moment can be a decision's."""
    last = "e677d21fdbff" + "f" * 20
    assert is_decision_id(last)
    assert moment(last).year == 9999
    for no_id in ("e677d21fdc00" + "0" * 20, "f" * 32, "0" * 31, "0" * 32 + "\n", ""):
        assert not is_decision_id(no_id)


def test_moments() -> None:
    """A decision's ID tells when it was made, to the millisecond."""
    at = datetime(2026, 11, 25, 9, 30, 0, 123000, tzinfo=UTC)
    assert record(at).time == at


@given(st.builds(record, user_agent=st.text(), end_user=st.text(), trace_id=st.text(max_size=99)))
def test_a_line_of_the_spool(entry: Record) -> None:
    """An entry is one line of JSON, and comes back as it was."""
    line = msgspec.json.encode(entry)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=Record) == entry
