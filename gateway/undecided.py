"""Requests without a decision: counted, and reported in the log at most once a second."""

import logging
from typing import TYPE_CHECKING

from policyd.command.log_throttle import Throttle
from policyd.errors import PolicydError

if TYPE_CHECKING:
    from gateway.request_metrics import RequestMetrics

log = logging.getLogger("gateway")


class Undecided:
    """Counts requests without a decision, by what became of them; `metrics` get the counts, too."""

    def __init__(self, metrics: "RequestMetrics | None") -> None:
        self._metrics = metrics
        self._counts: dict[str, int] = {}
        self._throttle = Throttle(1)

    def count(self, outcome: str, problem: PolicydError) -> None:
        """Count one that was "refused" or "forwarded unchecked", because of `problem`."""
        count = self._counts[outcome] = self._counts.get(outcome, 0) + 1
        if self._metrics is not None:
            self._metrics.undecided(outcome.partition(" ")[0])
        if self._throttle.is_due():
            log.error(
                "a request was %s (%d so far): %s",
                *(outcome, count, problem),
                extra={"outcome": outcome.partition(" ")[0], "requests": count},
            )
