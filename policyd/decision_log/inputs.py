"""What a record keeps of a decision input, so that a simulation can decide again by it."""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from policyd.decision_log.record import ABSENT, INVALID, MAX_ASKED, MAX_NUMBER
from policyd.engine.places import SAFETY_IDENTIFIER, USER, EndUser
from policyd.engine.states import UNKNOWN_NUMBER, Number, NumberState, UserState
from policyd.policies import TABLE

NOT_KEPT = "?"
"""Stands for a text that would be too long."""
_MAX_CACHED = 8
"""Override headers of a request up to which their texts are cached."""
_INVALID = "invalid"
"""Stands for the value of an override header that is not valid."""
_NOT_GIVEN = {
    None: UNKNOWN_NUMBER,
    ABSENT: Number(NumberState.ABSENT),
    INVALID: Number(NumberState.INVALID),
}
_UNKNOWN, _GIVEN, _ABSENT = NumberState.UNKNOWN, NumberState.GIVEN, NumberState.ABSENT
_decode_states = msgspec.json.Decoder(dict[str, UserState]).decode
_decode_values = msgspec.json.Decoder(dict[str, list[str]]).decode


# --- numbers -----------------------------------------------------------------------------------


def number(given: Number) -> int | None:
    """A number as a record keeps it."""
    if given.state is _GIVEN:
        return min(given.value, MAX_NUMBER)
    if given.state is _UNKNOWN:
        return None
    return ABSENT if given.state is _ABSENT else INVALID


def read_number(kept: int | None) -> Number:
    """The number that a record keeps as `kept`."""
    return _NOT_GIVEN.get(kept) or Number(NumberState.GIVEN, kept or 0)


# --- places of end users -----------------------------------------------------------------------


class PlaceStates(NamedTuple):
    """What is known about each place."""

    user: UserState
    safety_identifier: UserState
    others: str
    """A JSON object, or NOT_KEPT. (Older versions of policyd kept "".)"""


def place_states(given: Iterable[EndUser]) -> PlaceStates:
    """The state of each place as a record keeps it."""
    # Nearly all requests have the same few states in the same places.
    return _place_states(tuple([(one.place, one.state) for one in given]))


@lru_cache(maxsize=1024)
def _place_states(given: tuple[tuple[str, UserState], ...]) -> PlaceStates:
    found: dict[str, UserState] = {}
    for place, state in given:
        found[place] = _more_telling(found[place], state) if place in found else state
    user = found.pop(USER, UserState.UNKNOWN)
    safety_identifier = found.pop(SAFETY_IDENTIFIER, UserState.UNKNOWN)
    return PlaceStates(user, safety_identifier, _text(found))


def _more_telling(one: UserState, other: UserState) -> UserState:
    """Which of two end users in one place the engine would take."""
    if UserState.VALID in (one, other):
        return UserState.VALID
    return other if one in (UserState.ABSENT, UserState.UNKNOWN) else one


def read_place_states(others: str) -> dict[str, UserState]:
    """The states of the further places; none where they were not kept."""
    return _decode_states(others) if others not in ("", NOT_KEPT) else {}


# --- override headers --------------------------------------------------------------------------


class OverrideTexts(NamedTuple):
    """What override headers asked for."""

    original: str
    """The values of the original policy's header, separated by commas."""
    others: str
    """A JSON object, or NOT_KEPT."""


NO_OVERRIDES = OverrideTexts("", "")


def override_texts(given: tuple[tuple[str, str], ...]) -> OverrideTexts:
    """What the headers asked for, as far as a simulation needs it to decide again."""
    # Not cached for many headers: a client could send ever new combinations.
    return (
        _override_texts(given) if len(given) <= _MAX_CACHED else _override_texts.__wrapped__(given)
    )


@lru_cache(maxsize=1024)
def _override_texts(given: tuple[tuple[str, str], ...]) -> OverrideTexts:
    found: dict[str, set[str]] = {}
    for header, value in given:
        found.setdefault(header, set()).add(_asked(header, value))
    asked = {header: sorted(values) for header, values in sorted(found.items())}
    original = asked.pop(TABLE.original.header, [])
    return OverrideTexts(",".join(original), _text(asked) if asked else "")


def _asked(header: str, value: str) -> str:
    value = value.strip(" \t")
    policy = TABLE.by_header.get(header)
    if policy is None or policy.kind.wanted(value) is None:
        return _INVALID
    return value.lower() if policy.is_original else value


def read_overrides(original: str, others: str) -> tuple[tuple[str, str], ...]:
    """The override headers as name and value."""
    found = [(TABLE.original.header, value) for value in original.split(",") if value]
    if others not in ("", NOT_KEPT):
        for header, values in _decode_values(others).items():
            found += [(header, value) for value in values]
    return tuple(found)


def _text(values: object) -> str:
    text = msgspec.json.encode(values).decode()
    return text if len(text) <= MAX_ASKED else NOT_KEPT
