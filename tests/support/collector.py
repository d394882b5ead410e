"""A collector of traces: it speaks OTLP over HTTP, and keeps what it is sent."""

import gzip
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_GIVES_UP = 60.0
"""Seconds after which a span is not waited for: far more than any machine should take."""
_KINDS = Span.SpanKind


@dataclass(frozen=True)
class Received:
    """A span as the collector got it. IDs are hexadecimal digits."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int
    attributes: dict[str, Any]
    is_error: bool


class Collector:
    """Runs on a free port. Where `answers` is not set, it takes requests and answers none."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.status = 200
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.paths.append(self.path)
                collector.headers.append(dict(self.headers))
                collector.answers.wait(_GIVES_UP)
                if collector.status == 200:
                    collector._bodies.append(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(collector.status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def raw(self) -> bytes:
        """All that it was sent."""
        return b"".join(self._bodies)

    @property
    def spans(self) -> list[Received]:
        """The spans so far."""
        return [span for body in tuple(self._bodies) for span in _spans(body)]

    def wait_for(self, number: int) -> list[Received]:
        """The spans, once there are so many."""
        deadline = time.monotonic() + _GIVES_UP
        while len(found := self.spans) < number:
            assert time.monotonic() < deadline, f"{len(found)} of {number} spans: {found}"
            time.sleep(0.05)
        return found


def _spans(body: bytes) -> list[Received]:
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        of = {one.key: _value(one.value) for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            found += [_received(str(of["service.name"]), span) for span in scope.spans]
    return found


def _received(service: str, span: Span) -> Received:
    return Received(
        service,
        span.name,
        _KINDS.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {one.key: _value(one.value) for one in span.attributes},
        span.status.code == Status.STATUS_CODE_ERROR,
    )


def _value(value: AnyValue) -> Any:
    return getattr(value, str(value.WhichOneof("value")))
