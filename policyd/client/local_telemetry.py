"""What a gateway that decides by itself tells of its decisions: the metrics and spans of policyd.

What it takes is imported late, so that a gateway without --metrics and --traces starts sooner.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from policyd.decider.metrics import DecisionMetrics
    from policyd.decider.traces import LocalDecisionTraces
    from policyd.telemetry.tracing import Tracer

ADAPTER = "local"
"""What the decisions count as: those of a gateway that policyd was not asked by."""


class LocalTelemetry(NamedTuple):
    """What counts decisions, and what makes spans of them; None where no operator asks for it."""

    metrics: "DecisionMetrics | None" = None
    traces: "LocalDecisionTraces | None" = None


NO_TELEMETRY = LocalTelemetry()


def telemetry(tracer: "Tracer | None", *, is_counted: bool) -> LocalTelemetry:
    """What counts decisions with the other metrics of this process, where `is_counted`, and makes
    spans of them that `tracer` sends."""
    return LocalTelemetry(_metrics() if is_counted else None, _traces(tracer) if tracer else None)


def _metrics() -> "DecisionMetrics":
    from policyd.decider.metrics import DecisionMetrics
    from policyd.telemetry.metrics import this_process

    return DecisionMetrics(this_process(), (ADAPTER,))


def _traces(tracer: "Tracer") -> "LocalDecisionTraces":
    from policyd.decider.traces import LocalDecisionTraces

    return LocalDecisionTraces(tracer)
