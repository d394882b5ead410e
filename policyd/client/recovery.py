"""The absence of a peer: from a call that it did not answer until a look finds it again.

Others are asked meanwhile, if there are any. Looks come with growing pauses. The first one tries
several new connections, as one of them may lead to another worker of the same address.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from policyd.client.silence import Silence

LOOK = 2.0
"""Seconds that a look may take."""
HEAD_START = 0.05
"""Seconds that each new connection has before the next one is tried."""
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 5.0
"""Seconds between two looks for a peer that is away, at first and at most."""
_RIVALS = 4
"""New connections that the first look tries: workers of one address cannot be told apart, so a new
connection may lead to the worker that hangs, too."""


class Recovery:
    """Looks for a peer that is away. `look` takes the number of new connections to try, and gives
    whether the peer has answered. `silence` watches the calls to it."""

    def __init__(self, look: Callable[[int], Awaitable[bool]], silence: Silence) -> None:
        self.is_away = False
        self._look = look
        self._silence = silence
        self._looking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Note that the peer does not answer."""
        if self.is_away:
            return
        self.is_away = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_it())

    def end(self) -> None:
        """Note that the peer has answered."""
        self._silence.hear()
        self.is_away = False

    async def close(self) -> None:
        """Stop looking."""
        if looking := self._looking:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            self._looking = None

    async def _look_for_it(self) -> None:
        pause, rivals = _FIRST_PAUSE, _RIVALS
        while self.is_away:
            if await self._look(rivals):
                self.is_away = False
                return
            rivals = 1
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # no secret
            pause = min(2 * pause, _MAX_PAUSE)
