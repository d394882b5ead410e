"""PolicyService's messages -> what the engine decides on, and its decision -> the answer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeGuard

from policyd.descriptor import caller_claims, end_user_claims, headers
from policyd.descriptor.body import MAX_RAW_BODY, read_body
from policyd.descriptor.headers import KEY_HEADER, NO_HEADERS, TRACE_HEADER
from policyd.descriptor.identifiers import NOT_READ, TOO_LARGE, BodyAttributes
from policyd.descriptor.reader_process import BodyContext
from policyd.engine import endpoints, method_override
from policyd.engine.model import MAX_TOLD, Decision, DecisionInput, Result, cut
from policyd.engine.places import IDENTIFIERS, Target
from policyd.engine.states import Credential
from policyd.errors import InvalidDescriptor
from policyd.policies import TABLE
from policyd.v1 import policy_pb2 as pb

# Python takes longer to look up a member of an enumeration than to compare it.
_GIVEN = Credential.GIVEN


class Reading(NamedTuple):
    """What a message holds, as the engine and the decision log need it."""

    decision_input: DecisionInput
    trace_id: str
    attributes: BodyAttributes
    """Those of the message's raw body."""


class Heading(NamedTuple):
    """What the headers that are for policyd alone say, repeats kept."""

    credential: Credential
    """How the message names an API key."""
    key: str
    """Which one, where it is GIVEN."""
    overrides: tuple[tuple[str, str], ...]
    """The policies' override headers as name and value."""
    traces: tuple[str, ...]
    """The values of the trace header."""


def credential(request: pb.EvaluateRequest | pb.CheckKeyRequest) -> tuple[Credential, str]:
    """How a message names an API key, and which."""
    if request.key:
        return _GIVEN, request.key
    return headers.credential(headers.values(_pairs(request), KEY_HEADER))


def read_heading(request: pb.EvaluateRequest) -> Heading:
    """Read what is needed to look up a message's key. The result can be given to read()."""
    overrides: list[tuple[str, str]] = []
    keys: list[str] = []
    traces: list[str] = []
    for header in request.headers:
        name = header.name.lower()
        if name == KEY_HEADER:
            keys.append(header.value)
        elif name == TRACE_HEADER:
            traces.append(header.value)
        elif name in TABLE.by_header:
            overrides.append((name, headers.override(header.value)))
    named, key = _GIVEN, request.key
    if not key:
        named, key = headers.credential(keys)
    return Heading(named, key, tuple(overrides), tuple(traces))


def read(
    request: pb.EvaluateRequest,
    heading: Heading | None = None,
    *,
    reads_body: bool = True,
    body: BodyAttributes | None = None,
    accept: tuple[str, ...] = IDENTIFIERS,
    trusted: frozenset[str] = NO_HEADERS,
) -> Reading:
    """Read a message. Without `reads_body`, its raw body counts as too large; `body` are the raw
    body's attributes, where it has been read already.

    `heading` is what read_heading() found, where that was called before.
    `accept` are the places of an end user that count: some endpoints are in scope for keys that
    accept theirs only. `trusted` are the headers, in lower case, that may name an end user.

    Raises InvalidDescriptor where the message is malformed, or lacks what the decision needs.
    """
    named, key, overrides, traces = heading or read_heading(request)
    target = target_of(request)
    attributes = NOT_READ
    if request.HasField("raw_body") and target.in_scope:
        attributes = TOO_LARGE
        if reads_body:
            attributes = body or read_body(request.raw_body.content, *_about_body(request, target))
    end_users, unreadable = end_user_claims.end_users(request, attributes, target, trusted)
    is_judged = target.is_in_scope_for(accept) and not target.is_ambiguous
    if not end_users and is_judged:
        raise InvalidDescriptor(
            "nothing says whether this request has a user: "
            "set has_user, user_state or user, or send the body as raw_body; "
            "a call that is no endpoint of the API has in_scope false"
        )
    trace = request.trace_id or (traces[0] if traces else "")
    decision_input = DecisionInput(
        target,
        named,
        key,
        overrides,
        end_users,
        *caller_claims.model(request, attributes),
        caller_claims.token_limit(request, attributes),
        caller_claims.prompt_chars(request, attributes),
        unreadable,
    )
    return Reading(decision_input, headers.trace_id(trace) if trace else "", attributes)


def target_of(request: pb.EvaluateRequest | pb.CheckKeyRequest) -> Target:
    """What a message's method and path ask for."""
    method, path = request.method, request.path
    # A caller's word never takes a path out of scope: it counts only where there is none to judge.
    if not method and not path and _gives_scope(request):
        return Target(request.in_scope)
    if method != "POST" and not method_override.is_post(method):
        method = method_override.in_force(method, _pairs(request), path.partition("?")[2])
    return endpoints.resolve(method, path)


def _gives_scope(
    request: pb.EvaluateRequest | pb.CheckKeyRequest,
) -> TypeGuard[pb.EvaluateRequest]:
    return isinstance(request, pb.EvaluateRequest) and request.HasField("in_scope")


def _pairs(request: pb.EvaluateRequest | pb.CheckKeyRequest) -> Sequence[tuple[str, str]]:
    return [(header.name, header.value) for header in request.headers]


def content_encoding(request: pb.EvaluateRequest) -> str:
    """How the raw body is compressed: by its own field, or else by the headers."""
    given = request.raw_body.content_encoding
    return given or headers.content_encoding(headers.values(_pairs(request), "content-encoding"))


def about_raw_body(request: pb.EvaluateRequest) -> BodyContext | None:
    """What is needed to read the message's raw body; None where there is none to be read."""
    target = target_of(request)
    is_read = request.HasField("raw_body") and target.in_scope
    return _about_body(request, target) if is_read else None


def _about_body(request: pb.EvaluateRequest, target: Target) -> BodyContext:
    own = request.raw_body.content_type
    given = own or headers.agreed(headers.values(_pairs(request), "content-type"))
    return BodyContext(given, content_encoding(request), target.endpoint, MAX_RAW_BODY)


# The same few decisions recur, and nearly all of an answer depends on the decision alone.
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
