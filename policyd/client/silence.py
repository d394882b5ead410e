"""Silence of a peer: calls wait, and none has been answered for a while.

TCP does not help here. A peer that has vanished leaves its connections open, and a process that is
stopped still accepts new ones. A peer that answers some calls is slow, not silent. If this process
itself has stood still, the answers may be here and not read yet, so the wait begins anew.
"""

import asyncio
import time
from collections.abc import Callable


class Silence:
    """Calls `notice` when calls wait and none has been answered for `patience` seconds."""

    def __init__(self, patience: float, notice: Callable[[], None]) -> None:
        self.patience = patience
        self._notice = notice
        self._expected = 0
        """How many of the calls under way should be answered soon."""
        self._quiet_since = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._due = 0.0

    def expect(self) -> None:
        """Begin to wait for one more answer."""
        self._expected += 1
        if self._expected == 1:
            self._quiet_since = time.monotonic()
        if self._watch is None:
            self._look_in(self.patience)

    def settle(self) -> None:
        """Wait for one answer fewer: its call is over, with or without it."""
        self._expected -= 1

    def hear(self) -> None:
        """Note that the peer has answered."""
        self._quiet_since = time.monotonic()

    def stop(self) -> None:
        """Stop watching."""
        if self._watch:
            self._watch.cancel()

    def _look_in(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds
        self._watch = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._expected:
            return
        now = time.monotonic()
        if now - self._due > self.patience / 4:
            # This process has stood still: the answers may be here, and not read yet.
            self._quiet_since = now
        left = self._quiet_since + self.patience - now
        if left > 0.001:
            self._look_in(left)
        else:
            self._notice()
