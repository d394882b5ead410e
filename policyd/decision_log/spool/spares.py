"""Descriptors in reserve, for a process whose connections have used up all others.

Without them such a process could begin no new segment, and so make no decision.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from policyd.decision_log.spool.problems import NO_FILES
from policyd.decision_log.spool.system import System

_Result = TypeVar("_Result")
_SPARES = 4
"""Descriptors in reserve: enough to look through the folder and to begin new files."""


class Spares:
    """Holds descriptors, and closes one for a moment where the process has no other left."""

    def __init__(self, folder: int, system: System) -> None:
        self._folder = folder
        self._system = system
        self._kept: list[int] = []
        self._fill()

    def lend(self, work: Callable[[], _Result]) -> _Result:
        """Do `work`, which opens a file, and give it a spare descriptor if it needs one."""
        try:
            return work()
        except OSError as error:
            if error.errno not in NO_FILES or not self._kept:
                raise
            self._system.close(self._kept.pop())
            return work()
        finally:
            self._fill()

    def close(self) -> None:
        """Close all of them."""
        while self._kept:
            self._system.close(self._kept.pop())

    def _fill(self) -> None:
        with suppress(OSError):  # Then there are fewer for now.
            while len(self._kept) < _SPARES:
                self._kept.append(self._system.dup(self._folder))
