"""What each policy found of a request, as a record keeps it."""

from typing import Any

import msgspec
import pytest

from policyd.decision_log import results
from policyd.decision_log.record import MAX_RESULTS
from policyd.decision_log.results import LoggedResult
from policyd.engine.model import MAX_TOLD, Result, Violation
from policyd.engine.states import Ignored, Mode, Override, Source
from policyd.policies import TABLE
from tests.support.records import record

ORIGINAL = TABLE.original.name
LONG = "x" * (MAX_TOLD + 1)
CUT = "x" * (MAX_TOLD - 1) + "…"
PLAIN = Result("max_tokens", Mode.ENFORCE, "5", Source.KEY, Override.ANY, Ignored.LOCKED)
LOGGED = LoggedResult("max_tokens", Mode.ENFORCE, "5", Source.KEY, Ignored.LOCKED)


def logged(**changes: Any) -> LoggedResult:
    return msgspec.structs.replace(LOGGED, **changes)


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (PLAIN, LOGGED),
        (PLAIN._replace(value="x" * MAX_TOLD), logged(value="x" * MAX_TOLD)),
        (PLAIN._replace(value=LONG), logged(value=CUT)),
        (PLAIN._replace(violation=Violation("too many", "")), logged(message="too many")),
        (PLAIN._replace(violation=Violation(LONG, "")), logged(message=CUT)),
        (PLAIN._replace(has_failed=True), logged(message="")),
        (PLAIN._replace(violation=Violation("none", ""), has_failed=True), logged(message="")),
    ],
)
def test_what_is_kept(found: Result, kept: LoggedResult) -> None:
    """A record tells of a result all but which headers may override it, and cuts long texts."""
    assert results.of(record(results=results.text([found]))) == [kept]


def test_where_the_other_fields_say_it() -> None:
    """Nothing is kept where only the original policy was to judge; else its result is, too."""
    original = PLAIN._replace(policy=ORIGINAL, value="")
    assert results.text([]) == results.text([original]) == ""
    kept = results.of(record(results=results.text([PLAIN, original])))
    assert kept == [LOGGED, logged(policy=ORIGINAL, value="")]


def test_as_many_as_there_is_room_for() -> None:
    """As many results are kept, from the first on, as a record has room for."""
    each = len('["max_tokens",3,"",2,1,null],')
    count = MAX_RESULTS // (each + MAX_TOLD)
    rest = MAX_RESULTS - (count * (each + MAX_TOLD) + each - 1 + len("[]"))
    full = [PLAIN._replace(value="x" * MAX_TOLD)] * count
    fits = [*full, PLAIN._replace(value="x" * rest)]
    text = results.text(fits)
    assert len(text) == MAX_RESULTS
    assert results.text([*fits, PLAIN]) == text
    assert len(results.of(record(results=text))) == count + 1
    one_more = [*full, PLAIN._replace(value="x" * (rest + 1))]
    assert len(results.of(record(results=results.text(one_more)))) == count


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", None),
        ("invalid_override", None),
        (TABLE.original.flag, TABLE.original.description),
        (f"invalid_override,{TABLE.original.flag}", TABLE.original.description),
        (f"{TABLE.original.flag}s", None),
    ],
)
def test_the_result_that_the_other_fields_say(flags: str, message: str | None) -> None:
    """The original policy's result is found in the fields that are about it."""
    found = record(mode=Mode.AUDIT, source=Source.ROUTE, ignored=Ignored.LOCKED, flags=flags)
    [one] = results.of(found)
    assert one == LoggedResult(ORIGINAL, Mode.AUDIT, "", Source.ROUTE, Ignored.LOCKED, message)


@pytest.mark.parametrize(
    "given", [{"mode": None, "source": None}, {"mode": None}, {"source": None}]
)
def test_where_no_policy_applied(given: dict[str, Any]) -> None:
    """Where no mode counted, no policy has found anything."""
    assert results.of(record(**given)) == []
