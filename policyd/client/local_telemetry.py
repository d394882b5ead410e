"""The metrics and spans of a gateway that decides by itself: those that policyd has of decisions.

What makes them is imported late, so that a gateway without --metrics and --traces starts sooner.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from policyd.decider.metrics import DecisionMetrics
    from policyd.decider.traces import LocalDecisionTraces
    from policyd.telemetry.tracing import Tracer

ADAPTER = "local"
"""The adapter that decisions count under: those of a gateway that decides by itself."""


class LocalTelemetry(NamedTuple):
    """What counts decisions, and what makes spans of them; None where the operator wants none."""

    metrics: "DecisionMetrics | None" = None
    traces: "LocalDecisionTraces | None" = None


NO_TELEMETRY = LocalTelemetry()


def telemetry(tracer: "Tracer | None", *, is_counted: bool) -> LocalTelemetry:
    """Counts decisions with the other metrics of this process, if `is_counted`, and makes spans of
    them, which `tracer` sends."""
    return LocalTelemetry(_metrics() if is_counted else None, _traces(tracer) if tracer else None)


def _metrics() -> "DecisionMetrics":
    from policyd.decider.metrics import DecisionMetrics
    from policyd.telemetry.metrics import this_process

    return DecisionMetrics(this_process(), (ADAPTER,))


def _traces(tracer: "Tracer") -> "LocalDecisionTraces":
    from policyd.decider.traces import LocalDecisionTraces

    return LocalDecisionTraces(tracer)
