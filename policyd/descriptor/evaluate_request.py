"""PolicyService's messages -> what the engine decides on, and its decision -> the answer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from policyd.descriptor import headers
from policyd.descriptor.body import MAX_RAW_BODY, read_body
from policyd.descriptor.headers import KEY_HEADER, TRACE_HEADER
from policyd.descriptor.identifiers import (
    MAX_VALUE,
    NOT_READ,
    TOO_LARGE,
    BodyAttributes,
    Identifier,
    classify,
)
from policyd.descriptor.stated import MAX_MODEL, MOST
from policyd.engine import endpoints, method_override
from policyd.engine.model import (
    HEADER_PLACE,
    MAX_TOLD,
    SAFETY_HEADER,
    SAFETY_IDENTIFIER,
    UNKNOWN_NUMBER,
    USER,
    Credential,
    Decision,
    DecisionInput,
    EndUser,
    ModelState,
    Number,
    NumberState,
    Result,
    Target,
    UserState,
    cut,
    is_place,
)
from policyd.errors import InvalidDescriptor
from policyd.policies import TABLE
from policyd.v1 import policy_pb2 as pb

_STATES = tuple(UserState)
_UNKNOWN = UserState.UNKNOWN
_MODEL_STATES = tuple(ModelState)
_NUMBER_STATES = tuple(NumberState)


MAX_PLACE = 80
"""Characters of a place."""
_Member = TypeVar("_Member")


class Reading(NamedTuple):
    """What a message holds, as the engine and the decision log need it."""

    decision_input: DecisionInput
    trace_id: str
    attributes: BodyAttributes
    """Those of its raw body."""


def credential(request: pb.EvaluateRequest | pb.CheckKeyRequest) -> tuple[Credential, str]:
    """How a message names an API key, and which."""
    if request.key:
        return Credential.GIVEN, request.key
    return headers.credential(headers.values(_pairs(request), KEY_HEADER))


def check_end_users(reading: Reading, decision: Decision) -> None:
    """Raises InvalidDescriptor where nothing tells whether a request has a user.

    Of an endpoint that is in scope for some keys, the decision tells whether it is for this one.
    """
    given = reading.decision_input
    if not given.end_users and decision.explanation.in_scope and not given.target.is_ambiguous:
        raise InvalidDescriptor(NO_END_USER_GIVEN)


NO_END_USER_GIVEN = (
    "nothing tells whether this request has a user: "
    "set has_user, user_state or user, or send the body as raw_body; "
    "a call that is no endpoint of the API has in_scope false"
)
NONE_TRUSTED: frozenset[str] = frozenset()


def read(
    request: pb.EvaluateRequest,
    *,
    reads_body: bool = True,
    trusted: frozenset[str] = NONE_TRUSTED,
) -> Reading:
    """Read a message; its raw body counts as too large if that is not to be read.

    `trusted` are the headers, in lower case, that may name an end user.

    Raises InvalidDescriptor where it is malformed, or lacks what its request is decided by.
    """
    overrides, keys, traces = _own_headers(request)
    named, key = Credential.GIVEN, request.key
    if not key:
        named, key = headers.credential(keys)
    target = target_of(request)
    attributes = NOT_READ
    if request.HasField("raw_body") and target.in_scope:
        attributes = _read_raw_body(request, target) if reads_body else TOO_LARGE
    end_users, unreadable = _end_users(
        request, attributes, _from_headers(request, target, trusted), trusted
    )
    is_for_all = target.endpoint is None or not target.endpoint.only_for
    if not end_users and target.in_scope and not target.is_ambiguous and is_for_all:
        raise InvalidDescriptor(NO_END_USER_GIVEN)
    trace = request.trace_id or (traces[0] if traces else "")
    decision_input = DecisionInput(
        target,
        named,
        key,
        overrides,
        end_users,
        *_model(request, attributes),
        _token_limit(request, attributes),
        _prompt_chars(request, attributes),
        unreadable,
    )
    return Reading(decision_input, headers.trace_id(trace) if trace else "", attributes)


def target_of(request: pb.EvaluateRequest | pb.CheckKeyRequest) -> Target:
    """What a message's method and path ask for."""
    method, path = request.method, request.path
    # A caller's word never takes a path out of scope: it counts only where there is none to judge.
    if isinstance(request, pb.EvaluateRequest) and _gives_scope(request):
        return Target(request.in_scope)
    if not method_override.is_post(method):
        method = method_override.in_force(method, _pairs(request), path.partition("?")[2])
    return endpoints.resolve(method, path)


def _gives_scope(request: pb.EvaluateRequest) -> bool:
    return not request.method and not request.path and request.HasField("in_scope")


def _pairs(request: pb.EvaluateRequest | pb.CheckKeyRequest) -> Sequence[tuple[str, str]]:
    return [(header.name, header.value) for header in request.headers]


_Values = tuple[str, ...]
_Pairs = tuple[tuple[str, str], ...]


def _own_headers(request: pb.EvaluateRequest) -> tuple[_Pairs, _Values, _Values]:
    """The policies' override headers, and the values of the key and trace headers, repeats kept."""
    overrides: list[tuple[str, str]] = []
    keys: list[str] = []
    traces: list[str] = []
    for header in request.headers:
        name = header.name.lower()
        if name in TABLE.by_header:
            overrides.append((name, headers.override(header.value)))
        elif name == KEY_HEADER:
            keys.append(header.value)
        elif name == TRACE_HEADER:
            traces.append(header.value)
    return tuple(overrides), tuple(keys), tuple(traces)


# --- end users ---------------------------------------------------------------------------------


def _from_headers(
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


def _end_users(
    request: pb.EvaluateRequest,
    attributes: BodyAttributes,
    in_headers: list[EndUser],
    trusted: frozenset[str],
) -> tuple[tuple[EndUser, ...], UserState]:
    """What is known of each place: the worst that is claimed. And why the body cannot be read.

    Empty where nothing is known.
    """
    user = _worst(USER, request.user_state, "user_state", attributes.user)
    if request.HasField("has_user"):
        claimed = UserState.VALID if request.has_user else UserState.ABSENT
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
    found = (user, other, *_further(request, attributes, trusted))
    # Of a body that cannot be read, none of its places is known.
    unreadable = max([one.state for one in found])
    if unreadable.is_unreadable:
        found = tuple(_without_body(one, unreadable) for one in found)
    else:
        unreadable = _UNKNOWN
    if in_headers:
        # The engine takes the first valid one of a place: that of a header beside the body's.
        return (*in_headers, *found), unreadable
    return (found if any(one.state for one in found) else ()), unreadable


def _further(
    request: pb.EvaluateRequest, attributes: BodyAttributes, trusted: frozenset[str]
) -> list[EndUser]:
    """The further places that the body has, or of which the caller knows something."""
    found = {place: _found(place, identifier) for place, identifier in attributes.others}
    for given in request.end_users:
        place = given.place
        if _may_give(place, trusted):
            claimed = _given(given)
            found[place] = _or_worse(found[place], claimed) if place in found else claimed
    return list(found.values())


def _may_give(place: str, trusted: frozenset[str]) -> bool:
    """Raises InvalidDescriptor where it is no place of `end_users`."""
    if place.startswith(HEADER_PLACE):
        return place.removeprefix(HEADER_PLACE) in trusted
    if place in (USER, SAFETY_IDENTIFIER) or not is_place(place):
        raise InvalidDescriptor(
            f"end_users names the place {place[:MAX_PLACE]!r}: see EndUser in policy.proto"
        )
    return True


def _without_body(one: EndUser, state: UserState) -> EndUser:
    return one if one.place.startswith(HEADER_PLACE) else EndUser(one.place, state)


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
    return EndUser(place, identifier.state, identifier.value or None)


def _or_worse(one: EndUser, other: EndUser) -> EndUser:
    """The worse of two claims about a place, with the value that either knows."""
    if one.state is _UNKNOWN:
        return other
    state = max(one.state, other.state)
    value = other.value if one.value is None else one.value
    return EndUser(one.place, state, value if state is UserState.VALID else None)


def _string(place: str, text: str) -> EndUser:
    return EndUser(place, classify(text, place), text[:MAX_VALUE])


# --- the model and the numbers -----------------------------------------------------------------


def _model(request: pb.EvaluateRequest, read: BodyAttributes) -> tuple[ModelState, str]:
    """What is known of the model. What the caller claims and what the body holds must agree; one
    that either of them names is named."""
    state, model, given = read.model_state, read.model, request.model
    if request.model_state or given:
        state = max(state, _member(_MODEL_STATES, request.model_state, "model_state"))
        if state in (ModelState.UNKNOWN, ModelState.GIVEN, ModelState.ABSENT):
            is_conflicting = model != "" and given not in ("", model)
            model = given or model
            state = ModelState.GIVEN if model else state
            state = ModelState.CONFLICTING if is_conflicting else state
    if state is ModelState.GIVEN and len(model) > MAX_MODEL:
        state = ModelState.TOO_LONG
    return state, model if state is ModelState.GIVEN else ""


def _token_limit(request: pb.EvaluateRequest, read: BodyAttributes) -> Number:
    limit, choices = read.token_limit, read.choices
    if request.token_limit_state or request.HasField("token_limit"):
        given = request.token_limit if request.HasField("token_limit") else None
        limit = _worse(limit, _number(request.token_limit_state, given, "token_limit_state"))
    if request.HasField("choices"):
        choices = _worse(choices, _number(0, request.choices, ""))
    if limit.state is not NumberState.GIVEN or choices.state in _NO_CHOICES:
        return limit
    if choices.state is NumberState.INVALID or choices.value < 1:
        return Number(NumberState.INVALID)
    return Number(NumberState.GIVEN, min(limit.value * choices.value, MOST))


_NO_CHOICES = (NumberState.UNKNOWN, NumberState.ABSENT)


def _prompt_chars(request: pb.EvaluateRequest, read: BodyAttributes) -> Number:
    if not request.prompt_characters_state and not request.HasField("prompt_characters"):
        return read.prompt_chars
    given = request.prompt_characters if request.HasField("prompt_characters") else None
    claimed = _number(request.prompt_characters_state, given, "prompt_characters_state")
    return _worse(read.prompt_chars, claimed)


@lru_cache(maxsize=1024)
def _number(state: int, value: int | None, field: str) -> Number:
    """What a caller claims a number to be."""
    claimed = _member(_NUMBER_STATES, state, field)
    if value is None:
        # A number that is given stands in the field beside.
        return UNKNOWN_NUMBER if claimed is NumberState.GIVEN else Number(claimed)
    if value < 0 or claimed is NumberState.INVALID:
        return Number(NumberState.INVALID)
    return Number(NumberState.GIVEN, min(value, MOST))


def _worse(one: Number, other: Number) -> Number:
    """The worse of two claims: one that is not valid, else the larger number."""
    if one is UNKNOWN_NUMBER:
        return other
    if NumberState.INVALID in (one.state, other.state):
        return Number(NumberState.INVALID)
    return max(one, other, key=lambda number: (number.state is NumberState.GIVEN, number))


def _member(members: Sequence[_Member], number: int, field: str) -> _Member:
    if 0 <= number < len(members):
        return members[number]
    raise InvalidDescriptor(f"{field} has no value {number}: see policy.proto")


def _state(number: int, field: str) -> UserState:
    if 0 <= number < len(_STATES):
        return _STATES[number]
    raise InvalidDescriptor(f"{field} has no value {number}: see UserState in policy.proto")


def content_encoding(request: pb.EvaluateRequest) -> str:
    """How the raw body is compressed: by its own field, or else by the headers."""
    given = request.raw_body.content_encoding
    return given or headers.content_encoding(headers.values(_pairs(request), "content-encoding"))


def _read_raw_body(request: pb.EvaluateRequest, target: Target) -> BodyAttributes:
    body = request.raw_body
    given = body.content_type or headers.agreed(headers.values(_pairs(request), "content-type"))
    coding = content_encoding(request)
    return read_body(body.content, given, coding, target.endpoint, MAX_RAW_BODY)


# The same few decisions come again and again, and most of an answer is the decision's.
@lru_cache(maxsize=4096)
def answer(decision: Decision) -> pb.EvaluateResponse:
    """The answer that reports `decision`. It is shared: copy it before you add to it."""
    why = decision.explanation
    response = pb.EvaluateResponse(
        decision=pb.DECISION_DENY if decision.denial else pb.DECISION_ALLOW,
        flags=[pb.Flag(type=flag.type, description=flag.description) for flag in decision.flags],
        would_deny=decision.would_deny,
        explanation=pb.Explanation(
            mode=pb.EnforceMode.ValueType(why.mode or 0),
            source=pb.SettingSource.ValueType(why.source or 0),
            override_ignored=pb.OverrideIgnored.ValueType(why.ignored),
            in_scope=why.in_scope,
            operation=why.operation,
            user_state=pb.UserState.ValueType(why.user_state),
            identifier=why.identifier,
            summary=why.summary,
        ),
        results=map(_result, decision.results),
    )
    if denial := decision.denial:
        response.denial.http_status = denial.status
        response.denial.headers.extend(
            pb.Header(name=name, value=value) for name, value in denial.headers
        )
        response.denial.body = denial.body
    return response


def _result(result: Result) -> pb.PolicyResult:
    violation = result.violation
    return pb.PolicyResult(
        policy=result.policy,
        mode=pb.EnforceMode.ValueType(result.mode),
        value=cut(result.value, MAX_TOLD),
        source=pb.SettingSource.ValueType(result.source),
        ignored=pb.OverrideIgnored.ValueType(result.ignored),
        violated=violation is not None or result.has_failed,
        message=violation.message if violation else "",
    )
