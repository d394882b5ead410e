"""The IDs of decisions, which begin with the moment of each."""

from datetime import UTC, datetime, timedelta

import pytest

from policyd.decision_log.record import first_id, is_decision_id, moment

LAST = f"{253402300799999:012x}"  # The end of the year 9999.


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("0" * 32, True),
        (LAST + "f" * 20, True),
        (f"{int(LAST, 16) + 1:012x}" + "0" * 20, False),
        ("f" * 32, False),
        ("0" * 31, False),
        ("0" * 33, False),
        ("0" * 31 + "A", False),
        ("0" * 31 + "\n", False),
        ("", False),
    ],
)
def test_ids(text: str, is_one: bool) -> None:
    """An ID has 32 hexadecimal digits in small letters, and begins with a moment up to 9999."""
    assert is_decision_id(text) is is_one


@pytest.mark.parametrize("at", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)])
def test_the_first_of_a_moment(at: datetime) -> None:
    """The first ID of a moment is that of its millisecond, not before and not after."""
    assert moment(first_id(at) + "0" * 20) == at
    later = first_id(at + timedelta(milliseconds=1))
    assert int(later, 16) == int(first_id(at), 16) + 1
    assert first_id(datetime(1, 1, 1, tzinfo=UTC)) == "0" * 12
