"""What a record keeps of a decision input, and what is read from it again."""

import json

import pytest

from policyd.decision_log import inputs
from policyd.decision_log.inputs import NOT_KEPT, OverrideTexts, PlaceStates
from policyd.decision_log.record import ABSENT, INVALID, MAX_ASKED, MAX_NUMBER
from policyd.engine.places import SAFETY_IDENTIFIER, USER, EndUser
from policyd.engine.states import UNKNOWN_NUMBER, Number, NumberState, UserState
from policyd.policies import TABLE

ORIGINAL = TABLE.original.header
LIMIT = "x-usagepanda-max-tokens"
OTHER = "header:x-user"
UNKNOWN = UserState.UNKNOWN
VALID = UserState.VALID

Overrides = tuple[tuple[str, str], ...]


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (Number(NumberState.GIVEN, 0), 0),
        (Number(NumberState.GIVEN, 5), 5),
        (Number(NumberState.GIVEN, MAX_NUMBER), MAX_NUMBER),
        (Number(NumberState.ABSENT), ABSENT),
        (Number(NumberState.INVALID), INVALID),
        (UNKNOWN_NUMBER, None),
    ],
)
def test_numbers(number: Number, kept: int | None) -> None:
    """A number is kept as it is, its other states as what is no number; either is read again."""
    assert inputs.number(number) == kept
    assert inputs.read_number(kept) == number


def test_the_largest_number() -> None:
    """A larger number than a record has room for counts as the largest."""
    assert inputs.number(Number(NumberState.GIVEN, MAX_NUMBER + 1)) == MAX_NUMBER


def users(*given: tuple[str, UserState]) -> list[EndUser]:
    return [EndUser(place, state) for place, state in given]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], PlaceStates(UNKNOWN, UNKNOWN, "{}")),
        ([(USER, VALID)], PlaceStates(VALID, UNKNOWN, "{}")),
        ([(SAFETY_IDENTIFIER, UserState.BLANK)], PlaceStates(UNKNOWN, UserState.BLANK, "{}")),
        ([(OTHER, VALID), (USER, VALID)], PlaceStates(VALID, UNKNOWN, '{"header:x-user":1}')),
    ],
    ids=["none", "user", "safety_identifier", "another"],
)
def test_places(given: list[tuple[str, UserState]], kept: PlaceStates) -> None:
    """The states of the two places in a body stand by themselves, those of the others in JSON."""
    assert inputs.place_states(users(*given)) == kept
    others = {place: state for place, state in given if place == OTHER}
    assert inputs.read_place_states(kept.others) == others


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (VALID, UserState.EMPTY, VALID),
        (UserState.EMPTY, VALID, VALID),
        (UserState.EMPTY, UserState.BLANK, UserState.EMPTY),
        (UserState.EMPTY, UserState.ABSENT, UserState.EMPTY),
        (UserState.ABSENT, UserState.EMPTY, UserState.EMPTY),
        (UserState.UNKNOWN, UserState.EMPTY, UserState.EMPTY),
        (UserState.ABSENT, UserState.ABSENT, UserState.ABSENT),
    ],
)
def test_two_end_users_in_one_place(one: UserState, other: UserState, kept: UserState) -> None:
    """The valid one is kept, else the first that says more than that there is none."""
    assert inputs.place_states(users((USER, one), (USER, other))).user is kept


@pytest.mark.parametrize("others", ["", NOT_KEPT])
def test_places_that_were_not_kept(others: str) -> None:
    """Older versions kept none, and none are kept that would be too long."""
    assert inputs.read_place_states(others) == {}


def test_as_many_places_as_there_is_room_for() -> None:
    """The states of the further places are kept as long as their text may be, and no longer."""
    for more, expected in ((0, True), (1, False)):
        name = "x" * (MAX_ASKED - len('{"":1}') + more)
        others = inputs.place_states(users((name, VALID))).others
        assert (others == json.dumps({name: 1}, separators=(",", ":"))) is expected
        assert expected or others == NOT_KEPT


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), OverrideTexts("", "")),
        (((ORIGINAL, "true"),), OverrideTexts("true", "")),
        (((ORIGINAL, " FALSE\t"), (ORIGINAL, "True")), OverrideTexts("false,true", "")),
        (((ORIGINAL, "true"), (ORIGINAL, "TRUE")), OverrideTexts("true", "")),
        (((ORIGINAL, "maybe"),), OverrideTexts("invalid", "")),
        # Only blanks stand around a header's value.
        (((ORIGINAL, "\u00a0true"),), OverrideTexts("invalid", "")),
        (((ORIGINAL, "XtrueX"),), OverrideTexts("invalid", "")),
        (((LIMIT, "7"), (LIMIT, "5")), OverrideTexts("", '{"x-usagepanda-max-tokens":["5","7"]}')),
        (
            ((LIMIT, "many"), ("x-usagepanda-newer", "1"), (ORIGINAL, "true")),
            OverrideTexts(
                "true",
                '{"x-usagepanda-max-tokens":["invalid"],"x-usagepanda-newer":["invalid"]}',
            ),
        ),
    ],
)
def test_override_headers(given: Overrides, kept: OverrideTexts) -> None:
    """Each value is kept once, in alphabetical order; one that is not valid as just that."""
    assert inputs.override_texts(given) == kept


@pytest.mark.parametrize(
    ("original", "others", "read"),
    [
        ("", "", ()),
        ("", NOT_KEPT, ()),
        ("false,true", NOT_KEPT, ((ORIGINAL, "false"), (ORIGINAL, "true"))),
        (
            "true",
            '{"x-a":["1","2"],"x-b":["3"]}',
            ((ORIGINAL, "true"), ("x-a", "1"), ("x-a", "2"), ("x-b", "3")),
        ),
    ],
)
def test_override_headers_that_are_read_again(original: str, others: str, read: Overrides) -> None:
    """Each value has its header's name; what was not kept is left out."""
    assert inputs.read_overrides(original, others) == read


@pytest.mark.parametrize(("count", "cached"), [(8, 1), (9, 0)])
def test_what_is_cached(count: int, cached: int) -> None:
    """What many headers asked for is not cached, as a client could send ever new ones."""
    inputs._override_texts.cache_clear()
    given = tuple((LIMIT, str(number)) for number in range(1, count + 1))
    assert json.loads(inputs.override_texts(given).others)[LIMIT][0] == "1"
    assert inputs._override_texts.cache_info().currsize == cached
    inputs._override_texts.cache_clear()
