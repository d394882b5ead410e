"""PolicyService's messages -> entries of the decision log, which contain no body and no key."""

from functools import lru_cache
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from policyd.decision_log import results
from policyd.decision_log.inputs import (
    NO_OVERRIDES,
    number,
    override_texts,
    place_states,
)
from policyd.decision_log.record import (
    MAX_AGENT,
    MAX_SUMMARY,
    MAX_TEXT,
    MAX_TIME,
    MAX_TOKENS,
    Ending,
    Outcome,
    Record,
    Verdict,
    is_decision_id,
)
from policyd.decision_log.refused_key import MAX_TEXT as MAX_SAMPLE
from policyd.decision_log.refused_key import REASONS, RefusedKey
from policyd.descriptor.evaluate_request import Reading
from policyd.descriptor.message_fields import optional
from policyd.engine.model import Decision, cut
from policyd.engine.states import UserState
from policyd.errors import InvalidArgument
from policyd.v1 import policy_pb2 as pb

_ENDINGS = tuple(Ending)
_VALID = UserState.VALID


def record(
    request: pb.EvaluateRequest,
    reading: Reading,
    decision: Decision,
    response: pb.EvaluateResponse,
) -> Record | RefusedKey:
    """The entry for `decision`, with which `response` answers `request`."""
    if not response.api_key_id:
        return _refused_key(request, reading, response)
    return _record(request, reading, decision, response)


def _refused_key(
    request: pb.EvaluateRequest, reading: Reading, response: pb.EvaluateResponse
) -> RefusedKey:
    return RefusedKey(
        id=response.decision_id,
        reason=REASONS[reading.decision_input.credential],
        source_ip=request.source_ip[:MAX_SAMPLE],
        method=request.method[:MAX_SAMPLE],
        path=request.path.partition("?")[0][:MAX_SAMPLE],
        model=(request.model or reading.attributes.model)[:MAX_SAMPLE],
        user_agent=request.user_agent[:MAX_SAMPLE],
        trace_id=reading.trace_id,
        request_id=request.request_id[:MAX_SAMPLE],
    )


def _record(
    request: pb.EvaluateRequest,
    reading: Reading,
    decision: Decision,
    response: pb.EvaluateResponse,
) -> Record:
    why = decision.explanation
    given = reading.decision_input
    outline = _outline(decision)
    overrides = override_texts(given.overrides) if given.overrides else NO_OVERRIDES
    states = place_states(given.end_users)
    # In the order of Record's fields: a name for each would make an entry cost twice as much.
    return Record(
        response.decision_id,
        outline.verdict,
        outline.status,
        response.api_key_id,
        why.operation,
        why.mode,
        why.source,
        why.ignored,
        why.in_scope,
        why.user_state,
        why.identifier,
        outline.summary,
        outline.flags,
        response.revision,
        states.user,
        states.safety_identifier,
        overrides.original,
        _end_user(request, reading, decision)[:MAX_TEXT],
        (request.model or reading.attributes.model)[:MAX_TEXT],
        request.method[:MAX_TEXT],
        request.path.partition("?")[0][:MAX_AGENT],
        request.source_ip[:MAX_TEXT],
        request.user_agent[:MAX_AGENT],
        request.organization[:MAX_TEXT],
        reading.trace_id,
        request.request_id[:MAX_TEXT],
        token_limit=number(given.token_limit),
        prompt_chars=number(given.prompt_chars),
        model_state=given.model_state,
        end_users=states.others,
        header_overrides=overrides.others,
        results=outline.results,
    )


class _Outline(NamedTuple):
    """What a record keeps of a decision, within its bounds."""

    verdict: Verdict
    status: int
    summary: str
    flags: str
    results: str


# Few decisions differ from each other, so what the log keeps of one is worked out once.
@lru_cache(maxsize=4096)
def _outline(decision: Decision) -> _Outline:
    verdict = Verdict.WOULD_DENY if decision.would_deny else Verdict.ALLOWED
    if decision.denial:
        verdict = Verdict.DENIED
    return _Outline(
        verdict,
        decision.denial.status if decision.denial else 0,
        cut(decision.explanation.summary, MAX_SUMMARY),
        _flags(decision),
        results.text(decision.results),
    )


def _flags(decision: Decision) -> str:
    """The types of its flags, as many as a record has room for."""
    types = list(dict.fromkeys(flag.type for flag in decision.flags))
    while len(flags := ",".join(types)) > MAX_SUMMARY:
        types.pop()
    return flags


def _end_user(request: pb.EvaluateRequest, reading: Reading, decision: Decision) -> str:
    why = decision.explanation
    if not why.in_scope:
        return request.user or reading.attributes.user.value
    for one in reading.decision_input.end_users:
        if one.place == why.identifier and one.state is _VALID:
            return one.value or ""
    return ""


def outcome(message: pb.Outcome) -> Outcome:
    """The entry for an outcome. Raises InvalidArgument where it is malformed."""
    if not is_decision_id(message.decision_id):
        raise InvalidArgument("decision_id is not one that policyd gave")
    if not 0 <= message.ending < len(_ENDINGS):
        raise InvalidArgument(f"ending has no value {message.ending}: see Ending in policy.proto")
    if not 0 <= message.http_status <= 999:
        raise InvalidArgument("http_status is a number from 0 to 999")
    return Outcome(
        decision_id=message.decision_id,
        ending=_ENDINGS[message.ending],
        status=message.http_status,
        first_byte_us=_microseconds(message, "time_to_first_byte"),
        duration_us=_microseconds(message, "duration"),
        openai_id=message.openai_id[:MAX_TEXT],
        model=message.model[:MAX_TEXT],
        organization=message.organization[:MAX_TEXT],
        input_tokens=_tokens(message, "input_tokens"),
        output_tokens=_tokens(message, "output_tokens"),
        cached_tokens=_tokens(message, "cached_tokens"),
        cache_write_tokens=_tokens(message, "cache_write_tokens"),
    )


def _microseconds(message: pb.Outcome, field: str) -> int | None:
    duration: Duration | None = optional(message, field)
    if duration is None:
        return None
    return _number(duration.seconds * 1_000_000 + duration.nanos // 1000, field, MAX_TIME)


def _tokens(message: pb.Outcome, field: str) -> int | None:
    tokens = optional(message, field)
    return None if tokens is None else _number(tokens, field, MAX_TOKENS)


def _number(value: int, field: str, most: int) -> int:
    if not 0 <= value <= most:
        raise InvalidArgument(f"{field} is negative, or more than {most}")
    return value
