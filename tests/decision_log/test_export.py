"""The decision log as CSV and JSON Lines."""

import csv
import io
import json

import pytest

from policyd.decision_log.export import COLUMNS, csv_rows, item, json_line
from policyd.decision_log.record import Ending, Outcome, Record, Verdict
from policyd.engine.states import Ignored, Mode, ModelState, Source, UserState

RECORD = Record(
    id="019a0000000000000000000000000001",
    verdict=Verdict.ALLOWED,
    status=0,
    key_id="key_1",
    operation="chat_completion",
    mode=Mode.AUDIT,
    source=Source.KEY,
    ignored=Ignored.NOT_IGNORED,
    in_scope=True,
    user_state=UserState.VALID,
    identifier="user",
    summary='Allowed: the field user names an end user. Enforce User IDs is "audit".',
    flags="",
    revision=7,
    body_user=UserState.VALID,
    body_safety_identifier=UserState.ABSENT,
    overrides="",
    end_user="alice",
    model="gpt-4o",
)
OUTCOME = Outcome(
    RECORD.id,
    Ending.COMPLETE,
    200,
    1500,
    2_000_000,
    "chatcmpl-1",
    "gpt-4o-2024",
    "org",
    9,
    12,
    0,
    None,
    7,
)


def _replaced(**changes: object) -> Record:
    return Record(**{name: getattr(RECORD, name) for name in Record.__struct_fields__} | changes)


def _read(record: Record) -> dict[str, str]:
    text = "".join(csv_rows([record]))
    return next(csv.DictReader(io.StringIO(text, newline="")))


def test_no_decision() -> None:
    """A log without decisions gives a line with the columns."""
    assert "".join(csv_rows([])) == ",".join(COLUMNS) + "\r\n"


def test_a_decision_without_an_outcome() -> None:
    """An unknown value is an empty cell in CSV and null in JSON."""
    row = _read(RECORD)
    assert (row["time"], row["verdict"]) == ("2025-10-20T05:03:11.360Z", "allowed")
    assert (row["ending"], row["input_tokens"], row["cost_usd"]) == ("", "", "")
    fields = json.loads(json_line(RECORD))
    assert tuple(fields) == COLUMNS
    assert (fields["flags"], fields["duration_ms"], fields["cost_usd"]) == ([], None, None)


def test_a_decision_with_its_outcome() -> None:
    """Times are in milliseconds, and cost is in dollars; zero differs from unknown."""
    record = _replaced(outcome=OUTCOME, flags="policy_enforce_user_ids,invalid_override")
    fields = json.loads(json_line(record))
    assert (fields["first_byte_ms"], fields["duration_ms"]) == (1.5, 2000)
    assert (fields["cached_tokens"], fields["cost_usd"]) == (0, None)
    assert fields["cache_write_tokens"] == 7
    assert fields["flags"] == ["policy_enforce_user_ids", "invalid_override"]
    row = _read(record)
    assert (row["first_byte_ms"], row["duration_ms"], row["cached_tokens"]) == ("1.5", "2000", "0")
    assert row["flags"] == "policy_enforce_user_ids,invalid_override"


def test_a_small_cost() -> None:
    """A billionth of a dollar is written out, without an exponent."""
    outcome = Outcome(RECORD.id, cost_nano=1)
    assert _read(_replaced(outcome=outcome))["cost_usd"] == "0.000000001"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1"]
)
def test_a_formula(text: str) -> None:
    """A text that a spreadsheet would run is quoted in CSV; JSON keeps it as it is."""
    record = _replaced(user_agent=text)
    cell = _read(record)["user_agent"]
    assert (cell[0], cell.replace("'", "")) == ("'", text)
    assert json.loads(json_line(record))["user_agent"] == text


@pytest.mark.parametrize("text", ["a;=1+1;b", "a; @x", "a\t+1", 'a;"=1+1;b', "a\n=1", "a;\uff1d1"])
def test_a_formula_elsewhere(text: str) -> None:
    """A formula does not run either where semicolons or tabs end the cells, as in many places."""
    for separator in ";\t":
        line = list(csv_rows([_replaced(user_agent=text)]))[1]
        rows = csv.reader(io.StringIO(line, newline=""), delimiter=separator)
        # As spreadsheets read it: a quote inside a cell quotes nothing.
        bare = [cell for part in line.splitlines() for cell in part.split(separator)]
        for cell in (*bare, *(cell for row in rows for cell in row)):
            assert not cell.lstrip(' "').startswith(("=", "+", "-", "@", "\uff1d")), cell


def test_hostile_text() -> None:
    """Quotes, commas and line breaks stay within their cell, and within one line of JSON."""
    text = 'a",b\r\nc\u2028\u202e<script>'
    record = _replaced(user_agent=text)
    assert _read(record)["user_agent"] == text
    assert json_line(record).count("\n") == 1


def test_truths_and_nothing() -> None:
    """In CSV a truth value is a word in lower case, and no mode is an empty cell."""
    row = _read(_replaced(in_scope=True, sample=False, mode=None, source=None))
    assert (row["in_scope"], row["sample"]) == ("true", "false")
    assert (row["mode"], row["source"]) == ("", "")


@pytest.mark.parametrize(
    ("nano", "cell"),
    [(0, "0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (20_000_000_000, "20"), (None, "")],
)
def test_a_cost(nano: int | None, cell: str) -> None:
    """A cost is in dollars, to the billionth, without an exponent and without trailing zeros."""
    outcome = Outcome(RECORD.id, Ending.COMPLETE, 200, 1500, 2_000_000, cost_nano=nano)
    assert _read(_replaced(outcome=outcome))["cost_usd"] == cell


def test_a_line_of_json() -> None:
    """A decision is one line of JSON without spaces between members, in UTF-8 without escapes."""
    line = json_line(_replaced(end_user="zoë"))
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    assert '"user":"zoë","user_state":"valid"' in line


JUDGED = (
    '[["max_tokens",3,"500",2,1,"Config set to max tokens of: 500; request was: 600"],'
    '["enforce_user_ids",2,"",4,0,null]]'
)


def test_what_policies_found() -> None:
    """The last columns hold what each policy found, and the numbers that they judged."""
    judged = _replaced(
        results=JUDGED, token_limit=600, prompt_chars=12, model_state=ModelState.GIVEN
    )
    found = json.loads(json_line(judged))
    assert list(found)[-3:] == ["token_limit", "prompt_characters", "policies"]
    assert (found["token_limit"], found["prompt_characters"]) == (600, 12)
    first, second = found["policies"]
    assert (first["policy"], first["mode"], first["value"]) == ("max_tokens", "enforce", "500")
    assert first["message"] == "Config set to max tokens of: 500; request was: 600"
    assert (second["policy"], second["mode"]) == ("enforce_user_ids", "audit")
    assert second["message"] is None
    assert (first["source"], first["override_ignored"]) == ("key", "locked")
    assert (second["source"], second["override_ignored"]) == ("route", "not_ignored")
    row = _read(judged)
    assert (row["token_limit"], row["prompt_characters"]) == ("600", "12")
    assert json.loads(f"[{row['policies']}]") == found["policies"]


@pytest.mark.parametrize(
    ("value", "text"),
    [("zoë", "zoë"), ("1", "1"), (1, "1"), (None, "null"), ({"user": "zoë"}, '{"user": "zoë"}')],
)
def test_a_value_in_a_line_for_people(value: object, text: str) -> None:
    """A text stands there as it is, any other value as JSON, without escapes either."""
    assert item(value) == text


def test_numbers_that_are_none() -> None:
    """A limit that is absent or not valid, and what older versions did not log, is no number."""
    for kept in (None, -1, -2):
        found = json.loads(json_line(_replaced(token_limit=kept, prompt_chars=kept)))
        assert found["token_limit"] is found["prompt_characters"] is None
