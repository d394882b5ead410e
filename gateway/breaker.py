"""Says when an upstream that cannot be connected to is not tried.

Connections that fail one after another open the breaker: for a while no request waits for another
one that would fail as well. Then one request at a time tries; the pause doubles with each that
fails, and the first connection that is made closes the breaker.

    CLOSED  --FAILURES in a row-->  OPEN  --the pause is over-->  TRYING
    TRYING  --it fails-->  OPEN, for twice as long        TRYING  --it works-->  CLOSED

Only connecting counts. What an upstream answers, or how late, opens nothing, and requests on
connections that are open already pass at any time.
"""

import logging
import math
import random
from collections.abc import Callable
from enum import Enum, auto

from policyd.asgi.reply import AGAIN

_log = logging.getLogger("gateway")

_WINDOW = 30.0
"""Seconds after which a failure is forgotten."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_JITTER = 0.25
"""The part of a pause that is left to chance, so that gateways do not try in step."""


class _State(Enum):
    CLOSED = auto()
    OPEN = auto()
    TRYING = auto()


class UpstreamDown(Exception):
    """The upstream is not tried for now."""

    def __init__(self, seconds: float) -> None:
        super().__init__("connecting to it has failed again and again, so it was not tried")
        self.retry_after = max(math.ceil(seconds), 1) + random.randrange(AGAIN)  # noqa: S311  # no secret
        """Seconds after which a client may come back; not the same for all."""


class Breaker:
    """One upstream's. `failures` in a row open it, 0 never; `clock` gives seconds."""

    def __init__(self, failures: int, clock: Callable[[], float]) -> None:
        self._most = failures
        self._clock = clock
        self._state = _State.CLOSED
        self._failures = 0
        self._failed_at = 0.0
        self._opened_at = 0.0
        self._pause = _FIRST_PAUSE
        self._until = 0.0
        self._refused = 0

    def enter(self) -> bool:
        """A connection is about to be made. Raises UpstreamDown where none should be.

        Returns whether it is the one that tries. Then `work`, `fail` or `leave` is called.
        """
        if self._state is _State.CLOSED:
            return False
        left = self._until - self._clock()
        if self._state is _State.TRYING or left > 0:
            self._refused += 1
            raise UpstreamDown(max(left, 0.0))
        self._state = _State.TRYING
        return True

    def work(self) -> None:
        """The connection is made."""
        self._failures = 0
        if self._state is _State.CLOSED:
            return
        _log.warning(
            "the upstream can be connected to again, after %.0f s; %d requests were refused at "
            "once in that time",
            self._clock() - self._opened_at,
            self._refused,
        )
        self._state = _State.CLOSED

    def fail(self, problem: object, *, is_trial: bool) -> None:
        """It could not be made."""
        now = self._clock()
        if is_trial and self._state is _State.TRYING:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._open(now)
        elif self._state is _State.CLOSED and self._most:
            self._failures = 1 if now - self._failed_at > _WINDOW else self._failures + 1
            self._failed_at = now
            if self._failures >= self._most:
                self._tell(problem)
                self._opened_at, self._refused, self._pause = now, 0, _FIRST_PAUSE
                self._open(now)

    def leave(self, *, is_trial: bool) -> None:
        """It was given up: its client has left, or the gateway itself could not make it."""
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
