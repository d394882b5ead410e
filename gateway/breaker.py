"""The circuit breaker: stops connection attempts to an upstream that cannot be connected to.

While an upstream is unreachable, each request would wait for the time-out of a connection attempt
only to fail. So failures in a row open the breaker, and requests that need a new connection fail at
once. After a pause one request at a time makes a trial attempt; each failure doubles the pause, and
the first connection that is made closes the breaker.

    CLOSED  -- `failures` in a row -->  OPEN  -- the pause is over -->  TRYING
    TRYING  -- the trial fails -->  OPEN, for twice as long
    TRYING  -- the trial works -->  CLOSED
    TRYING  -- the client leaves -->  OPEN, with no pause left

Only connecting counts. What an upstream answers, and how late, never opens the breaker, because
such errors are the client's to see; and a request on a connection that is open already always
passes. Pauses and Retry-After vary at random, so that gateways and clients do not all come back at
the same time.
"""

import logging
import math
import random
from collections.abc import Callable
from enum import Enum, auto

from policyd.asgi.reply import AGAIN

_log = logging.getLogger("gateway")

_WINDOW = 30.0
"""Seconds after which a failure no longer counts as one in a row."""
_FIRST_PAUSE = 1.0
"""Seconds of the first pause, and of the longest one."""
_LONGEST_PAUSE = 30.0
_JITTER = 0.25
"""The share of a pause by which it varies at random."""


class _State(Enum):
    CLOSED = auto()
    OPEN = auto()
    TRYING = auto()


class UpstreamDown(Exception):
    """The breaker is open: no connection is attempted for now."""

    def __init__(self, seconds: float) -> None:
        super().__init__("connecting to it has failed again and again, so it was not tried")
        self.retry_after = max(math.ceil(seconds), 1) + random.randrange(AGAIN)  # noqa: S311  # no secret
        """Seconds after which the client may try again, varied at random."""


class Breaker:
    """The breaker of one upstream. `failures` in a row open it, 0 never; `clock` gives seconds."""

    def __init__(self, failures: int, clock: Callable[[], float]) -> None:
        self._most = failures
        self._clock = clock
        self._state = _State.CLOSED
        self._failures = 0
        self._failed_at = 0.0
        self._opened_at = 0.0
        self._pause = _FIRST_PAUSE
        self._until = 0.0
        self._turned_away = 0

    @property
    def is_open(self) -> bool:
        """Whether requests that need a new connection fail at once, except one that tries."""
        return self._state is not _State.CLOSED

    def enter(self) -> bool:
        """Ask to make a connection. Raises UpstreamDown where none should be attempted.

        Returns whether this is the trial attempt. The caller then calls `work`, `fail` or `leave`.
        """
        if self._state is _State.CLOSED:
            return False
        left = self._until - self._clock()
        if self._state is _State.TRYING or left > 0:
            self._turned_away += 1
            raise UpstreamDown(max(left, 0.0))
        self._state = _State.TRYING
        return True

    def work(self) -> None:
        """Note that the connection was made."""
        self._failures = 0
        if self._state is _State.CLOSED:
            return
        _log.warning(
            "the upstream can be connected to again, after %.0f s; %d requests were answered "
            "502 at once in that time",
            self._clock() - self._opened_at,
            self._turned_away,
        )
        self._state = _State.CLOSED

    def fail(self, problem: object, *, is_trial: bool) -> None:
        """Note that the connection could not be made, and why."""
        now = self._clock()
        if is_trial and self._state is _State.TRYING:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._open(now)
        elif self._state is _State.CLOSED and self._most:
            self._failures = 1 if now - self._failed_at > _WINDOW else self._failures + 1
            self._failed_at = now
            if self._failures >= self._most:
                self._tell(problem)
                self._opened_at, self._turned_away, self._pause = now, 0, _FIRST_PAUSE
                self._open(now)

    def leave(self, *, is_trial: bool) -> None:
        """Note that the attempt says nothing about the upstream: the client left before its end, or
        the gateway's own machine could not make the connection."""
        if is_trial and self._state is _State.TRYING:
            self._state = _State.OPEN

    def _open(self, now: float) -> None:
        self._state = _State.OPEN
        chance = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret
        self._until = now + self._pause * chance

    def _tell(self, problem: object) -> None:
        _log.warning(
            "the upstream could not be connected to %d times in a row (%s): requests that need a "
            "new connection get 502 at once, and one at a time tries after a pause (--breaker)",
            self._failures,
            problem,
        )
