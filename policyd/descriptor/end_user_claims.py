"""The end users that a descriptor claims, beside those in its raw body: the worst claim counts.

A place that two claims name gets the worse state of the two, so that no claim makes up a user that
the body does not have.
"""

from functools import lru_cache

from policyd.descriptor.caller_claims import member
from policyd.descriptor.identifiers import (
    BodyAttributes,
    Identifier,
    from_string,
    together,
)
from policyd.engine.places import (
    HEADER_PLACE,
    SAFETY_HEADER,
    SAFETY_IDENTIFIER,
    USER,
    EndUser,
    Target,
    is_place,
)
from policyd.engine.states import UserState
from policyd.errors import InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

_STATES = tuple(UserState)
# Python takes longer to look up a member of an enumeration than to compare it.
_UNKNOWN, _VALID, _ABSENT = UserState.UNKNOWN, UserState.VALID, UserState.ABSENT
MAX_PLACE = 80
"""Characters of a place that an error repeats."""


def end_users(
    request: pb.EvaluateRequest,
    attributes: BodyAttributes,
    target: Target,
    trusted: frozenset[str],
) -> tuple[tuple[EndUser, ...], UserState]:
    """What is known of each place, the worst that is claimed, and why the body cannot be read.

    There are no places where nothing is known; the reason is UNKNOWN where the body can be read.
    """
    user = _worst(USER, request.user_state, "user_state", attributes.user)
    if request.HasField("has_user"):
        claimed = _VALID if request.has_user else _ABSENT
        user = _or_worse(user, EndUser(USER, claimed))
    if request.HasField("user"):
        user = _or_worse(user, _string(USER, request.user))
    other = _worst(
        SAFETY_IDENTIFIER,
        request.safety_identifier_state,
        "safety_identifier_state",
        attributes.safety_identifier,
    )
    if request.HasField("safety_identifier"):
        other = _or_worse(other, _string(SAFETY_IDENTIFIER, request.safety_identifier))
    named = _named(request, trusted) if request.end_users else {}
    if named:
        user = _or_worse(user, named.pop(USER, user))
        other = _or_worse(other, named.pop(SAFETY_IDENTIFIER, other))
    further = _further(request, attributes, target, named)
    # The engine takes the first valid one of a place, so a header's comes before the body's.
    found = (*_in_headers(request, target, trusted), user, other, *further)
    worst = max([one.state for one in found])
    if worst.is_unreadable:
        # None of the body's places is known, and a header that names an end user does not make up
        # for that: docs/contract.md, section 3.
        return tuple([EndUser(one.place, worst) for one in found]), worst
    return (found if worst else ()), _UNKNOWN


def _in_headers(
    request: pb.EvaluateRequest, target: Target, trusted: frozenset[str]
) -> list[EndUser]:
    """The end users that headers name: trusted ones, and the endpoint's own."""
    endpoint = target.endpoint
    has_own = endpoint is not None and endpoint.safety_header
    if not trusted and not has_own:
        return []
    wanted = trusted | {SAFETY_HEADER} if has_own else trusted
    values: dict[str, set[str]] = {}
    for header in request.headers:
        name = header.name.lower()
        if name in wanted:
            values.setdefault(name, set()).add(header.value)
    found = [
        _in_header(HEADER_PLACE + name, given) for name, given in values.items() if name in trusted
    ]
    if has_own and SAFETY_HEADER in values:
        found.append(_in_header(SAFETY_IDENTIFIER, values[SAFETY_HEADER]))
    return found


def _in_header(place: str, values: set[str]) -> EndUser:
    """Two values that differ name no end user."""
    if len(values) > 1:
        return EndUser(place, UserState.DUPLICATE)
    return _string(place, *values)


def _further(
    request: pb.EvaluateRequest,
    attributes: BodyAttributes,
    target: Target,
    named: dict[str, EndUser],
) -> list[EndUser]:
    """The further places that the body has, or about which the caller claims something."""
    found: dict[str, EndUser] = {}
    if attributes.others:
        found = {place: _found(place, one) for place, one in attributes.others if one.state}
    for claimed in named.values():
        _add(found, claimed)
    if (request.model_state or attributes.model_state) and target.endpoint:
        # The whole body was read, so a place that is not named is absent.
        for place in target.endpoint.further:
            found.setdefault(place, EndUser(place, _ABSENT))
    return list(found.values())


def _named(request: pb.EvaluateRequest, trusted: frozenset[str]) -> dict[str, EndUser]:
    """The places in `end_users`, each with the worst that is claimed of it."""
    found: dict[str, EndUser] = {}
    for given in request.end_users:
        if _may_give(given.place, trusted):
            _add(found, _given(given))
    return found


def _add(found: dict[str, EndUser], claimed: EndUser) -> None:
    place = claimed.place
    found[place] = _or_worse(found[place], claimed) if place in found else claimed


def _may_give(place: str, trusted: frozenset[str]) -> bool:
    """Whether a claim about a place counts: a header's only if it is trusted.

    Raises InvalidDescriptor where `end_users` cannot hold the place.
    """
    if place.startswith(HEADER_PLACE):
        return place.removeprefix(HEADER_PLACE) in trusted
    if not is_place(place):
        raise InvalidDescriptor(
            f"end_users cannot name the place {place[:MAX_PLACE]!r}: see EndUser in policy.proto"
        )
    return True


def _given(given: pb.EndUser) -> EndUser:
    state = _state(given.state, "end_users.state")
    claimed = EndUser(given.place, state)
    if given.HasField("value"):
        claimed = _or_worse(claimed, _string(given.place, given.value))
    return claimed


def _worst(place: str, number: int, field: str, found: Identifier) -> EndUser:
    claimed = _claimed(place, number, field)
    return _or_worse(claimed, _found(place, found)) if found.state else claimed


@lru_cache(maxsize=256)
def _claimed(place: str, number: int, field: str) -> EndUser:
    return EndUser(place, _state(number, field))


def _found(place: str, identifier: Identifier) -> EndUser:
    return EndUser(place, identifier.state, identifier.value or None, identifier.further_values)


def _or_worse(one: EndUser, other: EndUser) -> EndUser:
    """The worse of two claims about a place, with the values of both."""
    if one.state is _UNKNOWN:
        return other
    if one.state is _VALID and one.value is None and other.state is _VALID:
        return other
    found = _found(one.place, together([_identifier(one), _identifier(other)]))
    if found.further_values and one.place.startswith(HEADER_PLACE):
        return EndUser(one.place, UserState.DUPLICATE)
    return found


def _identifier(one: EndUser) -> Identifier:
    return Identifier(one.state, one.value or "", one.further_values)


def _string(place: str, text: str) -> EndUser:
    state, value, _ = from_string(text, place)
    return EndUser(place, state, value or None)


def _state(number: int, field: str) -> UserState:
    return member(_STATES, number, field)
