"""How long the upstream keeps a connection that is idle, learnt from those that have ended.

Few servers say so, and a request that comes at the moment in which they close meets the close. What
has been seen of the last ones is enough to stay away from that moment. One that the upstream closes
early for a reason of its own changes nothing; an upstream that keeps none for long is not asked to.
"""

from collections import deque

MOST = 15.0
"""Seconds that an idle connection is kept, at the most: less than most servers wait."""
_SEEN = 16
"""Ends that are remembered."""
_ENOUGH = 4
"""Ends that tell something: so many of the last are as early as what is learnt, or earlier."""
_SHARE = 0.75
"""The part of the time seen in which a connection is used again."""


class IdleTime:
    """That of one upstream."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_SEEN)
        self.usable = MOST
        """Seconds of being idle up to which a connection should be used."""

    def note(self, seconds: float) -> None:
        """A connection has ended after being idle for so long, or was still there after MOST."""
        self._ends.append(seconds)
        if len(self._ends) < _ENOUGH:
            return
        typical = sorted(self._ends)[_ENOUGH - 1]
        self.usable = MOST if typical >= MOST else _SHARE * typical
