"""Envoy's access log: an entry of a request that policyd allowed becomes the request's outcome.

Envoy sends entries by envoy.service.accesslog.v3, and with each the dynamic metadata in which the
answer to Check named the decision (ext_authz.py). Envoy reads no answers, so it knows no tokens.
"""

import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf.message import DecodeError

from policyd.command.log_throttle import Throttle
from policyd.decider import MAX_BATCH, Decider
from policyd.errors import PolicydError
from policyd.v1 import policy_pb2 as pb

if TYPE_CHECKING:
    from policyd.decider.metrics import DecisionMetrics

_log = logging.getLogger(__name__)

_Entry = Any
"""An envoy.data.accesslog.v3.HTTPAccessLogEntry: the package has no types."""
ACCESS_LOG = als_pb2.DESCRIPTOR.services_by_name["AccessLogService"].full_name
_NAMESPACE = "envoy.filters.http.ext_authz"
_LOG_INTERVAL = 60.0
_AT_END = {
    accesslog_pb2.AccessLogType.Value("NotSet"),
    accesslog_pb2.AccessLogType.Value("DownstreamEnd"),
}
"""Kinds of entries that say how a request ended. Older Envoys set none."""
_MAX_STATUS = 999
_CLIENT_LEFT = (
    "downstream_connection_termination",
    "downstream_remote_reset",
    "downstream_protocol_error",
)
_BROKE = (
    *("upstream_remote_reset", "upstream_connection_termination", "upstream_connection_failure"),
    *("upstream_request_timeout", "upstream_protocol_error", "local_reset"),
    *("stream_idle_timeout", "upstream_max_stream_duration_reached", "duration_timeout"),
)


class AccessLogServicer:
    """Reports the outcomes in Envoy's log entries to `decider`.

    An entry that is no outcome of a decision, or cannot be logged, is dropped and counted: Envoy
    could do nothing about it. At most MAX_BATCH entries of a message are read.
    """

    def __init__(self, decider: Decider, metrics: "DecisionMetrics | None" = None) -> None:
        self._decider = decider
        self._metrics = metrics
        self._dropped = 0
        self._throttle = Throttle(_LOG_INTERVAL)

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's handler, for a gRPC server.

        The method has one answer, but is served as a stream of answers, so that WaitingCalls counts
        its calls: a stream that is silent gives way to others. Messages are parsed here, because
        gRPC would log a traceback for each malformed one.
        """
        stream: Any = grpc.stream_stream_rpc_method_handler(
            self.StreamAccessLogs,
            response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(ACCESS_LOG, {"StreamAccessLogs": stream})

    async def StreamAccessLogs(self, messages: AsyncIterator[bytes], context: Any) -> Any:
        """See envoy.service.accesslog.v3."""
        async for data in messages:
            try:
                message = als_pb2.StreamAccessLogsMessage.FromString(data)
            except DecodeError:
                self._drop("malformed", 1)
                continue
            await self._report(message, context)
        yield als_pb2.StreamAccessLogsResponse()

    async def _report(self, message: Any, context: Any) -> None:
        entries = message.http_logs.log_entry
        self._drop("other_protocol", len(message.tcp_logs.log_entry))
        self._drop("too_many", max(0, len(entries) - MAX_BATCH))
        outcomes = list(self._outcomes(entries[:MAX_BATCH]))
        if not outcomes:
            return
        try:
            answer = await self._decider.report(outcomes)
        except PolicydError:
            self._drop("not_logged", len(outcomes))
        else:
            self._drop("malformed", len(answer.rejected))

    def _outcomes(self, entries: Iterable[_Entry]) -> Iterator[pb.Outcome]:
        for entry in entries:
            decision_id, decision = _decision(entry)
            if not decision_id:
                self._drop("no_decision", 1)
            elif entry.response.response_code.value > _MAX_STATUS:
                self._drop("malformed", 1)
            elif decision == "allow" and _is_at_end(entry):
                yield outcome(entry, decision_id)

    def _drop(self, reason: str, entries: int) -> None:
        if not entries:
            return
        self._dropped += entries
        if self._metrics is not None:
            self._metrics.dropped(reason, entries)
        if self._throttle.is_due():
            _log.warning(
                "entries of Envoy's access log are dropped (%d so far): %s", self._dropped, reason
            )


def _decision(entry: _Entry) -> tuple[str, str]:
    """The decision's ID, and `allow` or `deny`; empty where policyd did not decide."""
    metadata = entry.common_properties.metadata.filter_metadata
    if _NAMESPACE not in metadata:  # Looking it up would add it.
        return "", ""
    fields = metadata[_NAMESPACE].fields
    given = {name: fields[name].string_value for name in fields}
    return given.get("decision_id", ""), given.get("decision", "")


def _is_at_end(entry: _Entry) -> bool:
    common = entry.common_properties
    return common.access_log_type in _AT_END and not common.intermediate_log_entry


def outcome(entry: _Entry, decision_id: str) -> pb.Outcome:
    """The outcome that an entry reports. Envoy counts its times from the request's arrival."""
    common, headers = entry.common_properties, entry.response.response_headers
    ending = _ending(common)
    made = pb.Outcome(decision_id=decision_id, ending=ending)
    if common.HasField("time_to_first_upstream_rx_byte"):
        # Any other status is that of Envoy's own answer.
        made.http_status = entry.response.response_code.value
        made.time_to_first_byte.CopyFrom(common.time_to_first_upstream_rx_byte)
        made.openai_id = headers.get("x-request-id", "")
        made.organization = headers.get("openai-organization", "")
    whole = "time_to_last_upstream_rx_byte" if ending == pb.ENDING_COMPLETE else "duration"
    if common.HasField(whole):
        made.duration.CopyFrom(getattr(common, whole))
    return made


def _ending(common: Any) -> pb.Ending.ValueType:
    flags = common.response_flags
    if any(getattr(flags, name) for name in _CLIENT_LEFT):
        return pb.ENDING_CLIENT_LEFT
    if not common.HasField("time_to_first_upstream_rx_byte"):
        return pb.ENDING_NO_ANSWER
    if any(getattr(flags, name) for name in _BROKE):
        return pb.ENDING_UPSTREAM_BROKE
    return pb.ENDING_COMPLETE
