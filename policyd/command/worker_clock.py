"""A worker's clock, measured against the database's. That of a gateway that decides by itself is
measured against policyd's, which is corrected by the database's.

Workers time decisions by their own clock, without asking the database. A wrong clock would put them
outside of the time that a query looks at, or among those old enough to delete. So if the clock is
off by more than a bound, that is logged, and its time is corrected by the offset that was measured
last. A decision's time is then right within the bound. Before the first measurement the clock is
taken to be right.
"""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

_log = logging.getLogger(__name__)


class WorkerClock:
    """A clock that is right within `bound` seconds, as far as it was measured against the clock of
    `owner`, such as "the database's"."""

    def __init__(
        self,
        bound: float,
        clock: Callable[[], float] = time.time,
        owner: str = "the database's",
    ) -> None:
        self._bound = bound
        self._clock = clock
        self._owner = owner
        self._offset = 0.0
        """Seconds that the clock is ahead, or 0 where that is within the bound."""
        self._told = 0.0
        """The offset that was logged last."""
        self.ahead = 0.0
        """Seconds that the clock was ahead of the owner's at the last measurement."""

    def time(self) -> float:
        """Seconds since 1970."""
        return self._clock() - self._offset

    def measured(self, ahead: timedelta) -> None:
        """Note how far the clock is ahead of the owner's, or behind it, if negative."""
        seconds = self.ahead = ahead.total_seconds()
        self._offset = seconds if abs(seconds) > self._bound else 0.0
        if abs(self._offset - self._told) <= self._bound:
            return  # A clock that drifts a little is not logged again at every beat.
        self._told = self._offset
        if self._offset:
            _log.error(
                "the clock of this machine is %s (the bound is %g s): decisions are logged by "
                "%s clock until this one is right. Set it, and have NTP keep it so",
                *(self._words(), self._bound, self._owner),
            )
        else:
            _log.info("the clock of this machine is right again: %+.3f s", seconds)

    @property
    def is_wrong(self) -> bool:
        """Whether it is further off than the bound."""
        return self._offset != 0

    def remark(self) -> str:
        """A remark for health checks. It is no failure: a wrong clock takes no worker out of
        service."""
        return f"the clock is {self._words()}" if self._offset else ""

    def _words(self) -> str:
        side = "ahead of" if self._offset > 0 else "behind"
        return f"{abs(self._offset):.1f} s {side} {self._owner}"
