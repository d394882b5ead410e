"""How seldom log lines come that a flood of requests would repeat."""

import time
from collections.abc import Callable


class Throttle:
    """Lets a log line come at most once in `seconds`, by `clock`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = float("-inf")

    def is_due(self) -> bool:
        """Whether the line may come now. If so, the next may only come `seconds` later."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
