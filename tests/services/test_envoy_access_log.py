"""AccessLogService/StreamAccessLogs on a real policyd, called as Envoy calls it."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType, HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse
from envoy.service.accesslog.v3.als_pb2_grpc import AccessLogServiceStub
from google.protobuf.duration_pb2 import Duration

from policyd.decider import MAX_BATCH, Decider
from policyd.decider.metrics import DROPS, DecisionMetrics
from policyd.decision_log.record import Ending, Outcome
from policyd.errors import LogFull
from policyd.services.envoy_access_log import AccessLogServicer
from policyd.telemetry.metrics import Metrics
from tests.support.commands import logged_with_outcome
from tests.support.envoy_checks import BUFFERED, CHAT_WITH_USER, KEY, Checker, request
from tests.support.processes import Policyd
from tests.support.records import decision_id as an_id

METHOD = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"


def entry(decision_id: str, decision: str = "allow", **common: Any) -> Any:
    """The entry of a request that the upstream answered with 200, unless `common` replaces it."""
    usual: dict[str, Any] = {
        "time_to_first_upstream_rx_byte": Duration(nanos=7_000_000),
        "time_to_last_upstream_rx_byte": Duration(seconds=1, nanos=500_000_000),
        "duration": Duration(seconds=2),
        "access_log_type": AccessLogType.DownstreamEnd,
    }
    made = HTTPAccessLogEntry(common_properties=usual | common)
    made.response.response_code.value = 200
    made.response.response_headers.update(
        {"x-request-id": "req_1", "openai-organization": "acme", "set-cookie": "s"}
    )
    metadata = made.common_properties.metadata.filter_metadata["envoy.filters.http.ext_authz"]
    metadata.update({"decision_id": decision_id, "decision": decision})
    return made


def message(*entries: Any) -> Any:
    made = StreamAccessLogsMessage()
    made.http_logs.log_entry.extend(entries)
    return made


@pytest.fixture
def allowed(checker: Checker, enforcing: str) -> Callable[[], str]:
    """Asks policyd about a request that it allows, and returns the decision's ID."""

    def ask() -> str:
        answer = checker.ask(request({KEY: enforcing} | BUFFERED, CHAT_WITH_USER))
        return str(answer.dynamic_metadata["decision_id"])

    return ask


@pytest.fixture
def channel(policyd: Policyd) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(policyd.grpc) as opened:
        yield opened


def test_an_entry_becomes_an_outcome(
    policyd: Policyd, channel: grpc.Channel, allowed: Callable[[], str]
) -> None:
    """An entry's status, times, ID and organization are logged once policyd has answered the
    stream."""
    decision = allowed()
    answer = AccessLogServiceStub(channel).StreamAccessLogs(
        iter([message(entry(decision))]), timeout=30
    )
    assert isinstance(answer, StreamAccessLogsResponse)
    found = logged_with_outcome(policyd.database_url, decision)
    assert (found["ending"], found["upstream_status"]) == ("complete", 200)
    assert (found["first_byte_ms"], found["duration_ms"]) == (7.0, 1500.0)
    assert (found["openai_id"], found["answer_organization"]) == ("req_1", "acme")
    assert found["input_tokens"] is found["cost_usd"] is None


def test_a_bad_message_does_not_end_the_stream(
    policyd: Policyd, channel: grpc.Channel, allowed: Callable[[], str]
) -> None:
    """Malformed messages, and entries without a decision, are dropped; the rest counts."""
    decision = allowed()
    good = message(HTTPAccessLogEntry(), entry("mine"), entry(decision)).SerializeToString()
    send: Any = channel.stream_unary(METHOD)
    assert send(iter([b"\xff", b"", good]), timeout=30) == b""
    assert logged_with_outcome(policyd.database_url, decision)["ending"] == "complete"


class Log:
    """Reports entries to a servicer whose log keeps them."""

    def __init__(self) -> None:
        self.entries: list[Outcome] = []
        self.full = False
        metrics = Metrics()
        self._counts = metrics._counts
        counting = DecisionMetrics(metrics)
        unused: Any = None
        decider = Decider(unused, unused, "ab" * 6, self._append, unused)
        self._servicer = AccessLogServicer(decider, counting)

    def _append(self, entries: Any) -> None:
        if self.full:
            raise LogFull
        self.entries += entries

    async def send(self, *messages: Any) -> None:
        async def each() -> Any:
            for one in messages:
                yield one.SerializeToString()

        answers = [one async for one in self._servicer.StreamAccessLogs(each(), None)]
        assert answers == [StreamAccessLogsResponse()]

    @property
    def dropped(self) -> dict[str, float]:
        """How many entries were dropped, by the reason, where there are any."""
        counts = self._counts["policyd_envoy_entries_dropped_total"]
        return {one: n for one in DROPS if (n := counts.of(one).pending)}


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.mark.parametrize(
    ("flag", "ending"),
    [
        ("", Ending.COMPLETE),
        ("downstream_connection_termination", Ending.CLIENT_LEFT),
        ("downstream_remote_reset", Ending.CLIENT_LEFT),
        ("upstream_remote_reset", Ending.UPSTREAM_BROKE),
        ("upstream_connection_termination", Ending.UPSTREAM_BROKE),
        ("stream_idle_timeout", Ending.UPSTREAM_BROKE),
        ("duration_timeout", Ending.UPSTREAM_BROKE),
    ],
)
async def test_endings(log: Log, flag: str, ending: Ending) -> None:
    """Envoy's response flags tell how a request ended; only whole answers end with their last
    byte."""
    decision = an_id()
    await log.send(message(entry(decision, response_flags={flag: True} if flag else {})))
    duration_us = 1_500_000 if ending is Ending.COMPLETE else 2_000_000
    assert log.entries == [
        Outcome(
            decision,
            ending,
            200,
            first_byte_us=7000,
            duration_us=duration_us,
            openai_id="req_1",
            organization="acme",
        )
    ]


@pytest.mark.parametrize(
    ("flag", "ending"),
    [
        ("upstream_connection_failure", Ending.NO_ANSWER),
        ("upstream_request_timeout", Ending.NO_ANSWER),
        ("downstream_connection_termination", Ending.CLIENT_LEFT),
    ],
)
async def test_no_answer(log: Log, flag: str, ending: Ending) -> None:
    """Without a byte of the upstream, the status and the headers are Envoy's own: not reported."""
    decision = an_id()
    unanswered = entry(decision, response_flags={flag: True})
    unanswered.common_properties.ClearField("time_to_first_upstream_rx_byte")
    await log.send(message(unanswered))
    assert log.entries == [Outcome(decision, ending, duration_us=2_000_000)]


async def test_other_entries_are_no_outcomes(log: Log) -> None:
    """Neither a denied request nor a request under way has an outcome, and neither is an error."""
    begun = entry(an_id(), access_log_type=AccessLogType.DownstreamStart)
    under_way = entry(an_id(), intermediate_log_entry=True)
    await log.send(message(entry(an_id(), "deny"), begun, under_way))
    assert (log.entries, log.dropped) == ([], {})


def with_status(status: int) -> Any:
    made = entry(an_id())
    made.response.response_code.value = status
    return made


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (HTTPAccessLogEntry(), "no_decision"),
        (entry(""), "no_decision"),
        (entry("not-an-id"), "malformed"),
        (with_status(2**32 - 1), "malformed"),
        (
            entry(an_id(), duration=Duration(seconds=-1), response_flags={"local_reset": True}),
            "malformed",
        ),
    ],
)
async def test_dropped_entries(log: Log, bad: Any, reason: str) -> None:
    """A bad entry is dropped and counted; those around it are logged."""
    first, last = an_id(), an_id()
    await log.send(message(entry(first), bad, entry(last)))
    assert [one.decision_id for one in log.entries] == [first, last]
    assert log.dropped == {reason: 1}


async def test_dropped_messages(log: Log) -> None:
    """Entries beyond MAX_BATCH, those of TCP, and those that the log has no room for are counted,
    and the stream goes on."""
    many = message(*(entry(an_id()) for _ in range(MAX_BATCH + 2)))
    tcp = StreamAccessLogsMessage()
    tcp.tcp_logs.log_entry.add()
    await log.send(many, tcp)
    assert len(log.entries) == MAX_BATCH
    assert log.dropped == {"too_many": 2, "other_protocol": 1}
    log.full = True
    await log.send(message(entry(an_id())))
    assert log.dropped == {"too_many": 2, "other_protocol": 1, "not_logged": 1}
