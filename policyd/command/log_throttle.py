"""Log lines that a flood of requests would repeat: how seldom they come."""

import time
from collections.abc import Callable


class Throttle:
    """Lets a log line come at most once in so many seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._next = float("-inf")

    def is_due(self) -> bool:
        """Whether the line may come now. If so, it may not again for as long."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
