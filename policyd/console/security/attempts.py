"""How often a password may be guessed, by source and for the account as a whole.

    one address, or one IPv6 customer      10 a minute, 60 an hour
    all addresses together                 20 a minute, 100 an hour

An attacker with many addresses uses up what all have together, and must not keep the administrator
out by it. So a device that has signed in before (see sessions.py) is a source of its own and counts
for nothing else, and the administration token, which is beyond guessing, needs no part of what all
have together. Attempts that succeed do not count.

The counts are of one process, bounded, and by a clock that is never put back.
"""

import math
import threading
import time
from collections import OrderedDict, deque

_HOUR = 3600.0
_EACH = ((10, 60.0), (60, _HOUR))
_ALL = ((20, 60.0), (100, _HOUR))
"""How many attempts in how many seconds."""
MAX_SOURCES = 4096
"""Sources that are remembered. What a forgotten one might try again is bounded by the account's."""


class Attempts:
    """Counts attempts to sign in. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()

    def wait(self, source: str) -> int:
        """Count an attempt from `source`. Returns the seconds to wait, 0 if it may go on."""
        with self._lock:
            made = self._sources.setdefault(source, deque())
            self._sources.move_to_end(source)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
            return _count(made, _EACH)

    def wait_for_all(self) -> int:
        """The same, for the account: from whatever source that is not known."""
        with self._lock:
            return _count(self._all, _ALL)

    def succeeded(self, source: str, *, counted_for_all: bool) -> None:
        """Take the last attempt back."""
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
