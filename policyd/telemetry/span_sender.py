"""Sends finished spans to a collector, by OpenTelemetry's exporter, in a thread of its own.

Nothing waits for the collector: the queue is bounded, and a span that finds it full is lost; so is
a batch that the collector does not take in _TIMEOUT seconds. Losses are counted, and logged now and
then.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from policyd.build_info import version
from policyd.command.log_throttle import Throttle
from policyd.telemetry.trace_context import TraceContext
from policyd.telemetry.tracing import Finished

_log = logging.getLogger(__name__)

QUEUE = 4096
"""Spans that wait, at most."""
_BATCH = 512
"""Spans that are sent at once."""
_PAUSE = 1.0
"""Seconds between two sends."""
_TIMEOUT = 5.0
"""Seconds that the collector has to take a batch, retries included."""
_END = 2.0
"""Seconds for the last spans, at the end."""
_TELL = 60.0
"""Seconds between two log lines that report losses."""
_PATH = "/v1/traces"


class Exporter(Protocol):
    """OpenTelemetry's exporter of spans, as far as it is used here."""

    def export(self, spans: Sequence[ReadableSpan], /) -> SpanExportResult:
        """Send spans."""

    def shutdown(self) -> None:
        """Give up what is under way."""


class SpanSender:
    """See policyd.telemetry.tracing.Sender. `where` is what the log calls the collector."""

    def __init__(self, exporter: Exporter, resource: Resource, where: str) -> None:
        self._exporter = exporter
        self._resource = resource
        self._scope = InstrumentationScope("policyd")
        self._where = where
        self._queue: deque[Finished] = deque()
        self._full = 0
        self._failed = 0
        self._wake = threading.Event()
        self._is_ending = False
        self._throttle = Throttle(_TELL)
        self._told = 0
        # A daemon, so that no process waits for it at its end: the collector may hang.
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Spans that did not get to the collector."""
        return self._full + self._failed

    def put(self, span: Finished) -> None:
        """See Sender."""
        if len(self._queue) >= QUEUE:
            self._full += 1
            return
        self._queue.append(span)
        if len(self._queue) == _BATCH:
            self._wake.set()

    def close(self) -> None:
        """See Sender."""
        self._is_ending = True
        self._wake.set()
        self._thread.join(_END)
        if self._thread.is_alive():
            self._failed += len(self._queue)
            self._exporter.shutdown()

    def _run(self) -> None:
        while not self._is_ending:
            self._wake.wait(_PAUSE)
            self._wake.clear()
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while batch := self._take():
            try:
                is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
            except Exception as problem:  # noqa: BLE001  # Traces must not end with one batch.
                _log.debug("spans could not be sent: %r", problem)
                is_sent = False
            self._failed += 0 if is_sent else len(batch)
            self._tell()

    def _take(self) -> list[ReadableSpan]:
        taken = min(len(self._queue), _BATCH)
        return [self._readable(self._queue.popleft()) for _ in range(taken)]

    def _tell(self) -> None:
        if (lost := self.lost) != self._told and self._throttle.is_due():
            self._told = lost
            _log.warning(
                "spans are lost (%d so far), as the collector at %s does not take them in time",
                *(lost, self._where),
            )

    def _readable(self, span: Finished) -> ReadableSpan:
        parent = span.parent
        return ReadableSpan(
            span.name,
            context=_context(span.context, is_remote=False),
            parent=_context(parent, is_remote=span.is_remote) if parent else None,
            resource=self._resource,
            attributes=span.attributes | ({"error.type": span.error} if span.error else {}),
            kind=SpanKind[span.kind.value],
            status=Status(StatusCode.ERROR if span.error else StatusCode.UNSET),
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )


def _context(place: TraceContext, *, is_remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if place.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(place.trace_id, place.span_id, is_remote, flags)


def span_sender(service: str, url: str) -> SpanSender:
    """What sends the spans of `service` to the collector at `url`.

    OpenTelemetry's own environment variables add to it: OTEL_RESOURCE_ATTRIBUTES,
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE.
    """
    # The exporter would log each batch that fails, perhaps with words of the collector's.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    endpoint = url.rstrip("/")
    endpoint += "" if endpoint.endswith(_PATH) else _PATH
    named = {"service.name": service, "service.version": version()}
    exporter = OTLPSpanExporter(endpoint, timeout=_TIMEOUT, compression=Compression.Gzip)
    return SpanSender(exporter, Resource.create(named), url)
