"""The spans of a decision, where policyd, or a gateway that decides by itself, sends traces:
Evaluate, and in it decide and log.

An evaluation belongs to the trace that its descriptor names in the header traceparent, which the
gateway and other adapters pass on; else to the one that the caller's gRPC metadata names.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from policyd.decision_log.record import Record
from policyd.decision_log.refused_key import RefusedKey
from policyd.decision_log.writer import Entry
from policyd.descriptor.headers import TRACE_HEADER
from policyd.telemetry.trace_context import TRACEPARENT
from policyd.telemetry.tracing import Span, Tracer
from policyd.v1 import policy_pb2 as pb


class DecisionTraces:
    """Makes the spans of evaluations by `tracer`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, request: pb.EvaluateRequest, adapter: str, context: Any = None) -> Span:
        """The span of an evaluation by `adapter`; `context` is that of its gRPC call, if any."""
        place, given = _named(request)
        if not place and context is not None:
            metadata = context.invocation_metadata() or ()
            place = [value for name, value in metadata if name == TRACEPARENT]
        span = self._tracer.begin("Evaluate", place, request.trace_id or given)
        if span.is_sampled:
            span.set(policyd_adapter=adapter)
        return span

    @contextmanager
    def batch(self, requests: Sequence[pb.EvaluateRequest], context: Any) -> Iterator[list[Span]]:
        """The spans of the evaluations of one BatchEvaluate, which end with the block."""
        with ExitStack() as ending:
            begun = [self.begin(request, "batch", context) for request in requests]
            yield [ending.enter_context(span) for span in begun]

    def decided(self, span: Span, entry: Entry, trace_id: str) -> None:
        """Note in the span of an evaluation what was decided, as the log has it."""
        if not span.is_sampled:
            return
        span.set(policyd_trace__id=trace_id)
        if isinstance(entry, RefusedKey):
            span.set(policyd_decision__id=entry.id, policyd_verdict="denied")
        if not isinstance(entry, Record):
            return
        span.set(
            policyd_decision__id=entry.id,
            policyd_api__key__id=entry.key_id,
            policyd_operation=entry.operation,
            policyd_verdict=entry.verdict.name.lower(),
            policyd_flags=entry.flags,
            policyd_revision=entry.revision,
            user_id=self._tracer.user(entry.end_user),
        )

    @contextmanager
    def logging(self, spans: Sequence[Span]) -> Iterator[None]:
        """The step in which the decisions of `spans`, which are sampled, become durable."""
        began, error = time.time_ns(), ""
        try:
            yield
        except BaseException as problem:
            error = type(problem).__name__
            raise
        finally:
            for span in spans:
                step = span.child("log", began=began)
                step.error = error
                step.end()


class LocalDecisionTraces(DecisionTraces):
    """The spans of evaluations in a gateway that decides by itself, within its own spans."""

    def begin(self, request: pb.EvaluateRequest, adapter: str, context: Any = None) -> Span:
        """The span of an evaluation; `context` is the gateway's own step that waits for it. So no
        header has to be read, which would cost each request that is not sampled a few µs."""
        if context is None:
            return super().begin(request, adapter)
        step: Span = context
        span = step.child("Evaluate")
        if span.is_sampled:
            span.set(policyd_adapter=adapter)
        return span


def _named(request: pb.EvaluateRequest) -> tuple[list[str], str]:
    """The values of the header traceparent, and the first value of TRACE_HEADER."""
    places, given = [], ""
    for header in request.headers:
        name = header.name.lower()
        if name == TRACEPARENT:
            places.append(header.value)
        elif name == TRACE_HEADER:
            given = given or header.value
    return places, given
