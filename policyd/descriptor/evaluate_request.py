"""PolicyService's messages -> what the engine decides on, and its decision -> the answer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from policyd.descriptor import headers
from policyd.descriptor.body import MAX_RAW_BODY, read_body
from policyd.descriptor.headers import KEY_HEADER, OVERRIDE_HEADER, TRACE_HEADER
from policyd.descriptor.identifiers import NOT_READ, TOO_LARGE, BodyAttributes, classify
from policyd.engine import endpoints, method_override
from policyd.engine.model import (
    SAFETY_IDENTIFIER,
    Credential,
    Decision,
    DecisionInput,
    Target,
    UserState,
)
from policyd.errors import InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

_STATES = tuple(UserState)
_UNKNOWN = UserState.UNKNOWN
_OWN = (OVERRIDE_HEADER, KEY_HEADER, TRACE_HEADER)


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


def read(request: pb.EvaluateRequest, *, reads_body: bool = True) -> Reading:
    """Read a message; its raw body counts as too large if that is not to be read.

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
    user, safety_identifier = _identifiers(request, attributes)
    is_unknown = user is _UNKNOWN and safety_identifier is _UNKNOWN
    if is_unknown and target.in_scope and not target.is_ambiguous:
        raise InvalidDescriptor(
            "nothing tells whether this request has a user: "
            "set has_user, user_state or user, or send the body as raw_body; "
            "a call that is no endpoint of the API has in_scope false"
        )
    trace = request.trace_id or (traces[0] if traces else "")
    decision_input = DecisionInput(target, named, key, overrides, user, safety_identifier)
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


def _own_headers(request: pb.EvaluateRequest) -> tuple[_Values, _Values, _Values]:
    """The values of the override, key and trace headers, repeats kept."""
    found: dict[str, list[str]] = {name: [] for name in _OWN}
    for header in request.headers:
        name = header.name.lower()
        if name in found:
            found[name].append(header.value)
    overrides, keys, traces = found.values()
    return tuple(map(headers.override, overrides)), tuple(keys), tuple(traces)


def _identifiers(
    request: pb.EvaluateRequest, attributes: BodyAttributes
) -> tuple[UserState, UserState]:
    """What is known of user and safety_identifier: of each, the worst that is claimed."""
    user = max(_state(request.user_state, "user_state"), attributes.user.state)
    safety_identifier = max(
        _state(request.safety_identifier_state, "safety_identifier_state"),
        attributes.safety_identifier.state,
    )
    if request.HasField("has_user"):
        user = max(user, UserState.VALID if request.has_user else UserState.ABSENT)
    if request.HasField("user"):
        user = max(user, classify(request.user))
    if request.HasField("safety_identifier"):
        claimed = classify(request.safety_identifier, SAFETY_IDENTIFIER)
        safety_identifier = max(safety_identifier, claimed)
    # Of a body that cannot be read, neither is known.
    unreadable = max(user, safety_identifier)
    return (unreadable, unreadable) if unreadable.is_unreadable else (user, safety_identifier)


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
    )
    if denial := decision.denial:
        response.denial.http_status = denial.status
        response.denial.headers.extend(
            pb.Header(name=name, value=value) for name, value in denial.headers
        )
        response.denial.body = denial.body
    return response
