"""How long the upstream keeps an idle connection, learnt from the connections that it has closed.

Few servers announce it, and a request that is sent just as the server closes gets no answer. So the
gateway remembers how long the last connections had been idle when they ended, and stops using one
at three quarters of that time. One early end changes nothing, as the upstream may have had some
other reason; _ENOUGH early ends do.
"""

from collections import deque

MOST = 15.0
"""Seconds that the gateway keeps an idle connection, at most: less than most servers do."""
_SEEN = 16
"""Number of ends that are remembered."""
_ENOUGH = 4
"""Number of remembered ends that have to be as early as the learnt time, or earlier."""
_SHARE = 0.75
"""The share of the learnt time within which an idle connection is used again."""


class IdleTime:
    """The idle time of one upstream's connections."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_SEEN)
        self.usable = MOST
        """Seconds: a connection that has been idle for longer should not be used."""

    def note(self, seconds: float) -> None:
        """Note that a connection ended after so many idle seconds, or was still open after MOST."""
        self._ends.append(seconds)
        if len(self._ends) < _ENOUGH:
            return
        typical = sorted(self._ends)[_ENOUGH - 1]
        self.usable = MOST if typical >= MOST else _SHARE * typical
