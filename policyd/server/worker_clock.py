"""A worker's clock, measured by the database's.

Decisions are timed by their worker, which asks no database for it. A clock that is wrong would put
them beyond what a query asks for, or among what is old enough to go. So where it is further off
than a bound, the log says so, and what it shows is corrected by the offset that was measured last:
a decision's time is right within that bound. Before the first answer of the database the clock is
believed.
"""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

_log = logging.getLogger(__name__)


class WorkerClock:
    """Is right within `bound` seconds, as far as it was measured."""

    def __init__(self, bound: float, clock: Callable[[], float] = time.time) -> None:
        self._bound = bound
        self._clock = clock
        self._offset = 0.0
        """Seconds that the clock is ahead, where that is more than the bound."""
        self._told = 0.0

    def time(self) -> float:
        """Seconds since 1970."""
        return self._clock() - self._offset

    def measured(self, ahead: timedelta) -> None:
        """Take note of how far the clock is ahead of the database's; behind, if negative."""
        seconds = ahead.total_seconds()
        self._offset = seconds if abs(seconds) > self._bound else 0.0
        if abs(self._offset - self._told) <= self._bound:
            return  # A clock that drifts is not said to be wrong every two seconds.
        self._told = self._offset
        if self._offset:
            _log.error(
                "the clock of this machine is %s (--max-clock-skew is %g s): decisions are logged "
                "by the database's clock until this one is right. Set it, and have NTP keep it so",
                *(self._words(), self._bound),
            )
        else:
            _log.info("the clock of this machine is right again: %+.3f s", seconds)

    @property
    def is_wrong(self) -> bool:
        """Whether it is further off than the bound."""
        return self._offset != 0

    def remark(self) -> str:
        """What health says beside whether it serves: a wrong clock takes no worker out."""
        return f"the clock is {self._words()}" if self._offset else ""

    def _words(self) -> str:
        side = "ahead of" if self._offset > 0 else "behind"
        return f"{abs(self._offset):.1f} s {side} the database's"
