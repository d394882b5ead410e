"""Limits on attempts to guess a password: for each source, and for all of them together.

    one address, or one IPv6 network       10 a minute, 60 an hour
    all addresses together                 20 a minute, 100 an hour

An attacker with many addresses can use up the limit for all together, and must not lock the
administrator out by that. So a device that has signed in before (see sessions.py) is a source of
its own and does not count for all, and neither does the administration token, which cannot be
guessed. Attempts that succeed do not count.

The counts are of one process, bounded, and by a monotonic clock.
"""

import math
import threading
import time
from collections import OrderedDict, deque

_HOUR = 3600.0
_EACH = ((10, 60.0), (60, _HOUR))
_ALL = ((20, 60.0), (100, _HOUR))
"""Limits: how many attempts in how many seconds."""
MAX_SOURCES = 4096
"""Sources that are remembered. The limit for all together bounds those that are forgotten."""


class Attempts:
    """Counts attempts to sign in. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()

    def wait(self, source: str) -> int:
        """Count an attempt from `source`. Returns the seconds to wait; 0 where it may go on."""
        with self._lock:
            made = self._sources.setdefault(source, deque())
            self._sources.move_to_end(source)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
            return _count(made, _EACH)

    def wait_for_all(self) -> int:
        """Count an attempt towards the limit for all together. Returns as wait() does."""
        with self._lock:
            return _count(self._all, _ALL)

    def succeeded(self, source: str, *, counted_for_all: bool) -> None:
        """Take the last attempt of `source` back, as it succeeded."""
        with self._lock:
            for made in (self._sources.get(source), self._all if counted_for_all else None):
                if made:
                    made.pop()


def _count(made: deque[float], limits: tuple[tuple[int, float], ...]) -> int:
    now = time.monotonic()
    while made and made[0] <= now - _HOUR:
        made.popleft()
    left = max(_left(made, now, *limit) for limit in limits)
    if left > 0:
        return math.ceil(left)
    made.append(now)
    return 0


def _left(made: deque[float], now: float, number: int, seconds: float) -> float:
    return made[-number] + seconds - now if len(made) >= number else 0.0
