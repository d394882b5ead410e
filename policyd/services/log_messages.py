"""Entries of the decision log -> AdminService's messages."""

from datetime import datetime, timedelta
from urllib.parse import urlencode

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from policyd.decision_log import results
from policyd.decision_log.record import Outcome, Record, Verdict, given, is_decision_id
from policyd.decision_log.results import LoggedResult
from policyd.descriptor.message_fields import moment
from policyd.errors import InvalidArgument
from policyd.policies import TABLE
from policyd.store import LogFilter
from policyd.v1 import admin_pb2 as pb
from policyd.v1 import policy_pb2

_MAX_FORMAT = 16
"""Characters of the name of an export's format."""


def log_filter(request: pb.ListDecisionsRequest) -> LogFilter:
    """The filter that a request asks for. Raises InvalidArgument."""
    if request.page_token and not is_decision_id(request.page_token):
        raise InvalidArgument("page_token is not one that ListDecisions gave")
    if request.policy and request.policy not in TABLE.by_name:
        known = ", ".join(TABLE.by_name)
        raise InvalidArgument(
            f"there is no policy {request.policy[:64]!r}: the policies are {known}"
        )
    try:
        verdict = Verdict(request.verdict) if request.verdict else None
    except ValueError:
        raise InvalidArgument(f"verdict has no value {request.verdict}: see admin.proto") from None
    return LogFilter(
        key_id=request.api_key_id,
        verdict=verdict,
        flag=request.flag,
        operation=request.operation,
        end_user=request.user,
        trace_id=request.trace_id,
        since=moment(request, "start_time"),
        until=moment(request, "end_time"),
        any_id=request.any_id,
        policy=request.policy,
        model=request.model,
        source_ip=request.source_ip,
        http_status=_http_status(request.http_status),
        user_contains=request.user_contains,
        without_user=request.without_user,
    )


def exported(request: pb.ListDecisionsRequest) -> dict[str, str]:
    """What the audit trail has of an export that a request begins. Raises InvalidArgument."""
    form = request.export_format
    if len(form) > _MAX_FORMAT or not form.isascii() or not form.isalnum():
        raise InvalidArgument(f"export_format has up to {_MAX_FORMAT} letters and digits")
    chosen = json_format.MessageToDict(request, preserving_proto_field_name=True)
    for name in ("page_size", "export_format"):
        chosen.pop(name, None)
    return {"format": form, "filter": urlencode(chosen, errors="replace")}


def _http_status(number: int) -> int:
    if number and not 100 <= number <= 599:
        raise InvalidArgument("http_status is a status from 100 to 599")
    return number


def message(record: Record) -> pb.LoggedDecision:
    """The message for one logged decision."""
    return pb.LoggedDecision(
        id=record.id,
        time=timestamp(record.time),
        verdict=pb.Verdict.ValueType(record.verdict),
        api_key_id=record.key_id,
        denial_status=record.status,
        flags=record.flags.split(",") if record.flags else [],
        explanation=_explanation(record),
        revision=record.revision,
        user=record.end_user,
        model=record.model,
        method=record.method,
        path=record.path,
        source_ip=record.source_ip,
        user_agent=record.user_agent,
        organization=record.organization or (record.outcome.organization if record.outcome else ""),
        trace_id=record.trace_id,
        request_id=record.request_id,
        outcome=_outcome(record.outcome) if record.outcome else None,
        cost_micro_usd=_micro(record.outcome),
        sample=record.sample,
        results=map(_result, results.of(record)),
        token_limit=given(record.token_limit),
        prompt_characters=given(record.prompt_chars),
    )


def _result(result: LoggedResult) -> policy_pb2.PolicyResult:
    return policy_pb2.PolicyResult(
        policy=result.policy,
        mode=policy_pb2.EnforceMode.ValueType(result.mode),
        value=result.value,
        source=policy_pb2.SettingSource.ValueType(result.source),
        ignored=policy_pb2.OverrideIgnored.ValueType(result.ignored),
        violated=result.message is not None,
        message=result.message or "",
    )


def _explanation(record: Record) -> policy_pb2.Explanation:
    return policy_pb2.Explanation(
        mode=policy_pb2.EnforceMode.ValueType(record.mode or 0),
        source=policy_pb2.SettingSource.ValueType(record.source or 0),
        override_ignored=policy_pb2.OverrideIgnored.ValueType(record.ignored),
        in_scope=record.in_scope,
        operation=record.operation,
        user_state=policy_pb2.UserState.ValueType(record.user_state),
        identifier=record.identifier,
        summary=record.summary,
    )


def _outcome(outcome: Outcome) -> policy_pb2.Outcome:
    return policy_pb2.Outcome(
        decision_id=outcome.decision_id,
        ending=policy_pb2.Ending.ValueType(outcome.ending),
        http_status=outcome.status,
        time_to_first_byte=_duration(outcome.first_byte_us),
        duration=_duration(outcome.duration_us),
        openai_id=outcome.openai_id,
        model=outcome.model,
        organization=outcome.organization,
        input_tokens=outcome.input_tokens,
        output_tokens=outcome.output_tokens,
        cached_tokens=outcome.cached_tokens,
        cache_write_tokens=outcome.cache_write_tokens,
    )


def _micro(outcome: Outcome | None) -> float | None:
    return None if outcome is None or outcome.cost_nano is None else outcome.cost_nano / 1000


def _duration(microseconds: int | None) -> Duration | None:
    return None if microseconds is None else duration(timedelta(microseconds=microseconds))


def duration(time: timedelta) -> Duration:
    """A length of time as a protobuf message."""
    made = Duration()
    made.FromTimedelta(time)
    return made


def timestamp(moment: datetime) -> Timestamp:
    """A point in time as a protobuf message."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
