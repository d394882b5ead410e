"""AdminService's messages -> entries of the decision log, as the store would give them."""

from datetime import timedelta

import msgspec
from google.protobuf.duration_pb2 import Duration

from policyd.cli.administration import Status
from policyd.decision_log.record import Ending, Outcome, Record, Verdict
from policyd.decision_log.results import LoggedResult
from policyd.descriptor.message_fields import optional
from policyd.engine.states import Ignored, Mode, Source, UserState
from policyd.services.log_messages import timestamp
from policyd.store import LogFilter
from policyd.v1 import admin_pb2 as pb
from policyd.v1 import policy_pb2


def request(wanted: LogFilter, after: str, limit: int) -> pb.ListDecisionsRequest:
    """The request for a page of the log."""
    return pb.ListDecisionsRequest(
        page_size=limit,
        page_token=after,
        api_key_id=wanted.key_id,
        verdict=pb.Verdict.ValueType(wanted.verdict or 0),
        flag=wanted.flag,
        operation=wanted.operation,
        user=wanted.end_user,
        trace_id=wanted.trace_id,
        start_time=timestamp(wanted.since) if wanted.since else None,
        end_time=timestamp(wanted.until) if wanted.until else None,
        any_id=wanted.any_id,
        policy=wanted.policy,
        model=wanted.model,
        source_ip=wanted.source_ip,
        http_status=wanted.http_status,
        user_contains=wanted.user_contains,
        without_user=wanted.without_user,
    )


def record(one: pb.LoggedDecision) -> Record:
    """A logged decision. AdminService does not give what is only needed to decide a request again,
    such as the states of further identifiers: those fields are as if they were not known."""
    why = one.explanation
    return Record(
        id=one.id,
        verdict=Verdict(one.verdict),
        status=one.denial_status,
        key_id=one.api_key_id,
        operation=why.operation,
        mode=Mode(why.mode) if why.mode else None,
        source=Source(why.source) if why.source else None,
        ignored=Ignored(why.override_ignored),
        in_scope=why.in_scope,
        user_state=UserState(why.user_state),
        identifier=why.identifier,
        summary=why.summary,
        flags=",".join(one.flags),
        revision=one.revision,
        body_user=UserState(0),
        body_safety_identifier=UserState(0),
        overrides="",
        end_user=one.user,
        model=one.model,
        method=one.method,
        path=one.path,
        source_ip=one.source_ip,
        user_agent=one.user_agent,
        organization=one.organization,
        trace_id=one.trace_id,
        request_id=one.request_id,
        sample=one.sample,
        outcome=_outcome(one) if one.HasField("outcome") else None,
        token_limit=one.token_limit if one.HasField("token_limit") else None,
        prompt_chars=one.prompt_characters if one.HasField("prompt_characters") else None,
        results=_results(one),
    )


def _results(one: pb.LoggedDecision) -> str:
    results = [_result(result) for result in one.results]
    return msgspec.json.encode(results).decode() if results else ""


def _result(one: policy_pb2.PolicyResult) -> LoggedResult:
    return LoggedResult(
        one.policy,
        Mode(one.mode),
        one.value,
        Source(one.source),
        Ignored(one.ignored),
        one.message if one.violated else None,
    )


def _outcome(one: pb.LoggedDecision) -> Outcome:
    reported = one.outcome
    cost = optional(one, "cost_micro_usd")
    tokens = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")
    return Outcome(
        decision_id=one.id,
        ending=Ending(reported.ending),
        status=reported.http_status,
        first_byte_us=_microseconds(reported, "time_to_first_byte"),
        duration_us=_microseconds(reported, "duration"),
        openai_id=reported.openai_id,
        model=reported.model,
        organization=reported.organization,
        cost_nano=None if cost is None else round(cost * 1000),
        **{name: optional(reported, name) for name in tokens},
    )


def _microseconds(reported: policy_pb2.Outcome, field: str) -> int | None:
    time: Duration | None = optional(reported, field)
    return None if time is None else time.ToTimedelta() // timedelta(microseconds=1)


def status(given: pb.GetLogStatusResponse) -> Status:
    """The state of the log, as `policyd logs status` prints it."""
    oldest = given.oldest_time.ToDatetime().isoformat(timespec="milliseconds") + "+00:00"
    has_clock = given.HasField("clock_offset")
    return {
        "decisions": given.decisions,
        "lost": given.lost,
        "oldest": oldest if given.HasField("oldest_time") else None,
        "refused_keys": given.refused_keys,
        "clock_offset": given.clock_offset.ToTimedelta().total_seconds() if has_clock else None,
        "clock_host": given.clock_host if has_clock else None,
        "workers": given.workers,
        "gateways": given.gateways,
        "database_problem": given.database_problem or None,
        "retention_standstill": given.retention_standstill or None,
        "retention_waiting": given.retention_waiting,
    }
