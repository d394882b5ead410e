"""The spans of a request at the gateway, where it sends traces: the request, and in it describe,
ask and upstream, the last by OpenTelemetry's conventions for generative AI.

A request carries its place in the trace: to policyd in the descriptor, and upstream in the header
traceparent, instead of the client's own. Spans are made from the exchange's moments when it ends,
and only where the trace is sampled.
"""

import time
from typing import TYPE_CHECKING

from yarl import URL

from gateway.headers import RequestHeaders
from policyd.client.request_outcome import RequestOutcome
from policyd.descriptor import headers
from policyd.descriptor.headers import TRACE_HEADER
from policyd.telemetry.redaction import redacted
from policyd.telemetry.trace_context import TRACEPARENT, TRACESTATE
from policyd.telemetry.tracing import Kind, Span, Tracer, Value
from policyd.v1.policy_pb2 import (
    ENDING_COMPLETE,
    ENDING_UNSPECIFIED,
    Ending,
    EvaluateRequest,
)

if TYPE_CHECKING:
    from gateway.exchange import Exchange

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_OPERATIONS = {
    "chat_completion": "chat",
    "response": "chat",
    "message": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
    "image_generation": "generate_content",
    "image_edit": "generate_content",
    "image_variation": "generate_content",
}
"""What the conventions call an operation."""
_PROVIDERS = {
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "api.mistral.ai": "mistral_ai",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "api.x.ai": "x_ai",
    "api.perplexity.ai": "perplexity",
}
"""What the conventions call the upstreams that are known by their host. Any other speaks OpenAI's
API, or policyd would not know its operations."""
_MAX_NAME = 64
"""Characters of a model in a span's name."""
_SERVER_ERROR, _CLIENT_ERROR = 500, 400


class RequestTrace:
    """The place of one request in its trace. Its steps get their IDs before they begin, as spans of
    policyd and the upstream name them as parents."""

    __slots__ = ("ask", "came_at", "is_local", "server", "upstream")

    def __init__(self, server: Span, came_at: int, *, is_local: bool = False) -> None:
        """The request came at `came_at`, in nanoseconds since 1970. `is_local`: the gateway decides
        on it by itself."""
        self.server = server
        self.came_at = came_at
        self.is_local = is_local
        self.ask: Span | None = None
        self.upstream: Span | None = None

    def begin_ask(self, values: dict[str, list[str]]) -> None:
        """Begin the step of asking, and name it in the headers that the descriptor is made of."""
        self.ask = self.server.child("ask", Kind.INTERNAL if self.is_local else Kind.CLIENT)
        values[TRACEPARENT] = [self.ask.context.header]

    def name(self, asked: EvaluateRequest, given: str) -> None:
        """Have policyd log the trace's ID, unless the client has given one of its own."""
        if not headers.trace_id(given):
            asked.trace_id = self.server.context.trace

    def forwarded(self, of: RequestHeaders) -> RequestHeaders:
        """The headers for the upstream, with traceparent naming the step of asking it."""
        self.upstream = self.server.child("upstream", Kind.CLIENT)
        dropped = [TRACEPARENT] if self.server.is_remote else [TRACEPARENT, TRACESTATE]
        kept = [pair for pair in of.forwarded if pair[0].lower() not in dropped]
        return of._replace(forwarded=[*kept, (TRACEPARENT, self.upstream.context.header)])


class RequestTraces:
    """Makes the spans of requests to the upstream at `url`, which `tracer` begins."""

    def __init__(self, tracer: Tracer, url: str, *, is_local: bool = False) -> None:
        """`is_local`: the gateway decides by itself, so asking is a step of its own."""
        self.tracer = tracer
        self._is_local = is_local
        upstream = URL(url)
        host = upstream.raw_host or ""
        known = (name for of, name in _PROVIDERS.items() if f".{host}".endswith(f".{of}"))
        self._upstream: dict[str, Value] = {
            "gen_ai.provider.name": next(known, "openai"),
            "server.address": host,
            "server.port": upstream.port or 0,
        }

    def begin(self, of: RequestHeaders) -> RequestTrace:
        """The trace of a request with these headers, which has just come."""
        came_at = time.time_ns()
        given = of.first(TRACE_HEADER)
        server = self.tracer.begin("", of.all(TRACEPARENT), given, came_at)
        return RequestTrace(server, came_at, is_local=self._is_local)

    def served(self, exchange: "Exchange", now: int) -> None:
        """Send the spans of a request that has ended. `now` and the exchange's moments are
        nanoseconds of time.perf_counter_ns()."""
        trace = exchange.trace
        if trace is None or not trace.server.is_sampled:
            return

        def at(moment: int) -> int:
            return trace.came_at + moment - exchange.began

        if exchange.asked:
            trace.server.child("describe", began=trace.came_at).end(at(exchange.asked))
        if trace.ask is not None and exchange.decided:
            _ask(trace.ask, exchange).end(at(exchange.decided), at(exchange.asked))
        if trace.upstream is not None:
            self._asked_upstream(trace.upstream, exchange).end(at(now), at(exchange.decided))
        _served(trace.server, exchange).end(at(now))

    def _asked_upstream(self, span: Span, exchange: "Exchange") -> Span:
        operation = _OPERATIONS.get(exchange.operation, "")
        if operation:
            span.name = f"{operation} {redacted(exchange.model)[:_MAX_NAME]}".rstrip()
            span.set_all({"gen_ai.operation.name": operation})
            span.set_all({"gen_ai.request.model": exchange.model})
            span.set_all(self._upstream)
        else:
            span.set_all({name: self._upstream[name] for name in ("server.address", "server.port")})
        span.set_all({"http.request.method": _method(exchange)})
        if exchange.answered:
            span.set_all(
                {
                    "http.response.status_code": exchange.status,
                    "policyd.first_byte_seconds": (exchange.answered - exchange.decided) / 1e9,
                }
            )
        if exchange.outcome is not None:
            span.set_all(_usage(exchange.outcome))
        span.error = _upstream_error(exchange)
        return span

    def close(self) -> None:
        """Send what is left. It takes a few seconds at most."""
        self.tracer.close()


def _method(exchange: "Exchange") -> str:
    method: str = exchange.scope["method"]
    return method if method in _METHODS else "_OTHER"


def _ask(span: Span, exchange: "Exchange") -> Span:
    if exchange.trace is not None and not exchange.trace.is_local:
        span.set_all({"rpc.system": "grpc", "rpc.service": "policyd.v1.PolicyService"})
    if exchange.decision is None:
        span.error = "no_decision"
    return span


def _served(span: Span, exchange: "Exchange") -> Span:
    decision, method = exchange.decision, _method(exchange)
    span.name = f"{'HTTP' if method == '_OTHER' else method} {exchange.operation}".rstrip()
    span.set_all(
        {
            "http.request.method": method,
            "url.path": exchange.path,
            "url.scheme": exchange.scope["scheme"],
            "policyd.operation": exchange.operation,
            "policyd.answered_by": exchange.by,
            "policyd.verdict": exchange.verdict,
        }
    )
    if exchange.status:
        span.set_all({"http.response.status_code": exchange.status})
    if decision is not None:
        span.set_all(
            {
                "policyd.decision_id": decision.decision_id,
                "policyd.api_key_id": decision.api_key_id,
                "policyd.trace_id": decision.trace_id,
            }
        )
    if exchange.status >= _SERVER_ERROR:
        span.error = str(exchange.status)
    return span


def _upstream_error(exchange: "Exchange") -> str:
    if exchange.answered and exchange.status >= _CLIENT_ERROR:
        return str(exchange.status)
    ending = exchange.outcome.ending if exchange.outcome else ENDING_UNSPECIFIED
    if ending not in (ENDING_COMPLETE, ENDING_UNSPECIFIED):
        return Ending.Name(ending).removeprefix("ENDING_").lower()
    return "" if exchange.answered else "no_answer"


def _usage(outcome: RequestOutcome) -> dict[str, Value]:
    found: dict[str, Value] = {
        "gen_ai.response.model": outcome.model,
        "gen_ai.response.id": outcome.openai_id,
    }
    # A count that is not known is left out: it is not 0.
    if outcome.input_tokens is not None:
        found["gen_ai.usage.input_tokens"] = outcome.input_tokens
    if outcome.output_tokens is not None:
        found["gen_ai.usage.output_tokens"] = outcome.output_tokens
    if outcome.cached_tokens is not None:
        found["gen_ai.usage.cache_read.input_tokens"] = outcome.cached_tokens
    if outcome.cache_write_tokens is not None:
        found["gen_ai.usage.cache_creation.input_tokens"] = outcome.cache_write_tokens
    return found
