"""Traces: which are sampled, what goes on in them, and that no request waits for a collector."""

import threading
import time
from collections import Counter
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from policyd.errors import SettingsError
from policyd.telemetry import span_sender
from policyd.telemetry.span_sender import QUEUE, SpanSender
from policyd.telemetry.trace_context import (
    TraceContext,
    is_in_share,
    new_trace_id,
    read_traceparent,
)
from policyd.telemetry.tracing import Finished, Kind, Tracer, check_traces, start_tracing
from tests.support.collector import Collector

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


class Kept:
    """Keeps the spans that are put into it."""

    def __init__(self) -> None:
        self.spans: list[Finished] = []

    def put(self, span: Finished) -> None:
        self.spans.append(span)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("value", "is_sampled"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
        (f" {PARENT} ", True),
    ],
)
def test_a_traceparent_is_read(value: str, is_sampled: bool) -> None:
    """A traceparent is read as W3C recommends, later versions included."""
    assert read_traceparent([value]) == TraceContext(int(TRACE, 16), int(SPAN, 16), is_sampled)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        [PARENT, PARENT],
        [PARENT.upper()],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE}-{SPAN}-01-more"],
        [f"00-{TRACE}-{SPAN}-0g"],
        [f"00-{TRACE[:-1]}-{SPAN}-01"],
        [f"cc-{TRACE}-{SPAN}-01-" + "x" * 10**6],
        ["\x00" * 55],
    ],
    ids=lambda values: ascii(values)[:30],
)
def test_a_malformed_traceparent_is_none(values: list[str]) -> None:
    """A malformed or repeated traceparent does not continue a client's trace."""
    assert read_traceparent(values) is None


def test_a_traceparent_is_written() -> None:
    """A traceparent that is passed on is read with the same meaning."""
    place = TraceContext(new_trace_id(), 5, True)
    assert read_traceparent([place.header]) == place
    assert place.header.split("-")[1] == place.trace


def test_the_parent_decides() -> None:
    """A trace that comes is sampled as its parent says, whatever the share."""
    for share, flags in [(0.0, "01"), (1.0, "00")]:
        kept = Kept()
        tracer = Tracer(kept, share)
        with tracer.begin("Evaluate", [f"00-{TRACE}-{SPAN}-{flags}"]) as span:
            assert span.context.trace == TRACE
            span.child("decide").end()
        assert len(kept.spans) == (2 if flags == "01" else 0)
        assert span.context.header[-2:] == flags


def test_a_share_is_sampled() -> None:
    """A share of the traces that begin here is sampled, by the trace's ID alone."""
    counts = dict.fromkeys((0.0, 0.01, 0.5, 1.0), 0)
    for _ in range(20_000):
        trace = new_trace_id()
        for share in counts:
            counts[share] += is_in_share(trace, share)
    assert (counts[0.0], counts[1.0]) == (0, 20_000)
    assert 100 < counts[0.01] < 350
    assert 9_000 < counts[0.5] < 11_000
    kept = Kept()
    for _ in range(100):
        Tracer(kept, 0.0).begin("Evaluate", []).end()
    assert kept.spans == []


def test_a_clients_own_trace_id_is_the_traces() -> None:
    """Where it has the form, so that the decision log and the trace have one ID."""
    tracer = Tracer(Kept(), 1.0)
    assert tracer.begin("Evaluate", [], TRACE).context.trace == TRACE
    assert tracer.begin("Evaluate", [], "my-trace").context.trace != TRACE
    assert tracer.begin("Evaluate", [PARENT], "f" * 32).context.trace == TRACE


def test_spans() -> None:
    """Each has its parent and its attributes: dotted names, long text cut, empty text left out."""
    kept = Kept()
    with Tracer(kept, 0.0).begin("Evaluate", [PARENT]) as server:
        server.set(policyd_decision__id="d1", url_path="x" * 1000, policyd_verdict="", count=0)
        with server.child("ask", Kind.CLIENT):
            pass
    child, parent = kept.spans
    assert parent.parent is not None
    assert f"{parent.parent.span_id:016x}" == SPAN
    assert parent.is_remote
    assert child.parent == parent.context
    assert not child.is_remote
    assert parent.began <= child.began <= child.ended <= parent.ended
    assert parent.attributes == {"policyd.decision_id": "d1", "url.path": "x" * 256, "count": 0}
    assert (child.name, child.kind) == ("ask", Kind.CLIENT)


def test_an_exception_is_an_error_by_its_kind() -> None:
    """A span has the kind of an exception, and never its text, which may hold anything."""
    kept = Kept()

    def fail() -> None:
        with Tracer(kept, 1.0).begin("Evaluate", []):
            raise ValueError("up-secret")

    with pytest.raises(ValueError, match="up-secret"):
        fail()
    [span] = kept.spans
    assert span.error == "ValueError"
    assert "up-secret" not in repr(span)


def test_end_users_are_hashed() -> None:
    """The same key gives a user the same hash; without a key, spans name no user."""
    keyed, other = Tracer(Kept(), 1, "k" * 16), Tracer(Kept(), 1, "l" * 16)
    assert keyed.user("alice") == keyed.user("alice") != keyed.user("bob")
    assert keyed.user("alice") != other.user("alice")
    assert "alice" not in keyed.user("alice")
    assert keyed.user("") == Tracer(Kept(), 1).user("alice") == ""


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("127.0.0.1:4318", ""),
        ("ftp://127.0.0.1", ""),
        ("http://user:password@collector:4318", ""),
        ("http://collector:4318?token=x", ""),
        ("http://collector:4318/\n", ""),
        ("", "k" * 16),
        ("http://collector:4318", "short"),
    ],
)
def test_settings_that_do_not_fit(url: str, key: str) -> None:
    """Unusable settings are refused, and the error repeats no secret."""
    with pytest.raises(SettingsError):
        check_traces(url, key)


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence names the extra that is missing."""
    monkeypatch.setitem(__import__("sys").modules, "policyd.telemetry.span_sender", None)
    with pytest.raises(SettingsError, match=r"pip install 'policyd\[tracing\]'$"):
        start_tracing("policyd", "http://127.0.0.1:4318", 1.0)
    assert start_tracing("policyd", "", 1.0) is None


def test_a_collector_gets_them() -> None:
    """A receiver of OTLP gets each span once, with its service, parent and attributes."""
    with Collector() as collector:
        tracer = start_tracing("policyd", collector.url, 1.0)
        assert tracer is not None
        for number in range(3):
            with tracer.begin("Evaluate", [PARENT]) as server:
                server.set(number=number)
                server.child("decide").end()
        tracer.close()
        spans = collector.spans
    assert Counter(span.name for span in spans) == {"Evaluate": 3, "decide": 3}
    assert {span.trace_id for span in spans} == {TRACE}
    assert {span.service for span in spans} == {"policyd"}
    parents = {span.span_id: span for span in spans if span.name == "Evaluate"}
    assert {span.parent_id for span in spans if span.name == "decide"} == set(parents)
    assert {span.parent_id for span in parents.values()} == {SPAN}
    assert {span.kind for span in parents.values()} == {"SERVER"}
    assert sorted(span.attributes["number"] for span in parents.values()) == [0, 1, 2]
    assert set(collector.paths) == {"/v1/traces"}


class Hanging:
    """An exporter that hangs until it is shut down."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._let_go = threading.Event()

    def export(self, spans: Any, /) -> SpanExportResult:
        self.begun.set()
        self._let_go.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._let_go.set()


def finished() -> Finished:
    place = TraceContext(new_trace_id(), 1, True)
    return Finished("decide", Kind.INTERNAL, place, None, False, 1, 2, {}, "")


def test_a_collector_that_hangs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Putting a span never waits; what does not fit is counted and said, and the end is bounded."""
    monkeypatch.setattr(span_sender, "_END", 0.1)
    exporter = Hanging()
    sender = SpanSender(exporter, Resource.create({}), "http://127.0.0.1:4318")
    sender.put(finished())
    assert exporter.begun.wait(60)
    for _ in range(QUEUE + 100):
        sender.put(finished())
    assert sender.lost == 100
    sender.close()
    deadline = time.monotonic() + 60
    while sender._thread.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "spans are lost" in caplog.text


def test_a_collector_that_refuses() -> None:
    """Spans that the collector does not take are lost and counted, and later spans are sent."""
    with Collector() as collector:
        collector.status = 400
        sender = span_sender.span_sender("policyd", collector.url)
        sender.put(finished())
        deadline = time.monotonic() + 60
        while not sender.lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        collector.status = 200
        sender.put(finished())
        sender.close()
        assert len(collector.spans) == 1
        assert sender.lost == 1
