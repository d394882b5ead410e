"""Policies that could not judge requests: counted, and logged now and then."""

import logging
from collections import Counter

from policyd.command.log_throttle import Throttle

_log = logging.getLogger(__name__)
_SECONDS = 10.0
"""Seconds, at least, between two log lines."""


class PolicyFailures:
    """Counts how often each policy could not judge a request."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Failures since the start, by policy."""
        self._throttle = Throttle(_SECONDS)

    def add(self, failures: tuple[tuple[str, Exception], ...]) -> None:
        """Count the failures of one decision."""
        self.counts.update(name for name, _ in failures)
        if self._throttle.is_due():
            name, error = failures[0]
            _log.error(
                "the policy %s could not judge a request (%d so far): %s: %s. It is denied "
                "where the policy is enforced",
                name[:64] if name.isprintable() else repr(name[:64]),
                self.counts[name],
                type(error).__name__,
                error,
                extra={"policy": name[:64], "requests": self.counts[name]},
            )
