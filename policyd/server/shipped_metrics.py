"""Counts of entries that were shipped to the database: by the background worker from policyd's own
spool, and by the workers from the spools of gateways that decide by themselves.

Only a policyd with --metrics loads it, and prometheus-client.
"""

from collections.abc import Sequence
from threading import Lock

from policyd.decision_log.pricing import priced_as
from policyd.decision_log.record import Outcome
from policyd.telemetry import bounds, catalogue
from policyd.telemetry.bounds import Names
from policyd.telemetry.metrics import Metrics

_NANO = 1e-9


class ShippedMetrics:
    """Counts entries, and the tokens and the cost of their outcomes. Any thread may call it."""

    def __init__(self, metrics: Metrics) -> None:
        self._lock = Lock()
        self._models = Names(bounds.MODELS)
        self._tokens = metrics.counts(catalogue.TOKENS)
        self._cost = metrics.counts(catalogue.COST)
        self._shipped = metrics.count(catalogue.SHIPPED)

    def shipped(self, entries: Sequence[object]) -> None:
        """Count entries that were shipped to the database."""
        with self._lock:
            self._shipped.pending += len(entries)
            for one in entries:
                if isinstance(one, Outcome) and one.input_tokens is not None:
                    self._count(one)

    def _count(self, outcome: Outcome) -> None:
        model = self._models.bounded(priced_as(outcome.model))
        for kind in catalogue.TOKEN_KINDS:
            if amount := getattr(outcome, f"{kind}_tokens"):
                self._tokens.of(model, kind).pending += amount
        if outcome.cost_nano:
            self._cost.of(model).pending += outcome.cost_nano * _NANO
