"""The decision log of one process that decides, by its settings."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from policyd.decision_log.spool import SpoolWriter, Sync
from policyd.decision_log.writer import DecisionLog

_FLUSH = 5.0
"""Seconds between two writes of the counts of refused keys, which are kept in memory."""
_CHECK = 1.0
"""Seconds between two looks at whether decisions can be logged."""


class LogSettings(Protocol):
    """How a process writes its log, as the settings of the same names say."""

    @property
    def spool(self) -> Path:
        """The spool's folder."""

    @property
    def spool_limit(self) -> int:
        """Bytes that may wait in the spool."""

    @property
    def spool_sync(self) -> Sync:
        """When the disk has a decision."""

    @property
    def drop_when_full(self) -> bool:
        """Whether to answer, and count the loss, where the spool is full."""

    @property
    def drop_on_error(self) -> bool:
        """Whether to do so where the spool cannot be written."""


def open_log(settings: LogSettings, process: str, clock: Callable[[], float]) -> DecisionLog:
    """The log that `process` writes, timed by `clock`, in seconds since 1970. Raises
    SettingsError."""
    sync = settings.spool_sync
    return DecisionLog(
        SpoolWriter(settings.spool, process, settings.spool_limit, sync),
        process,
        drop_when_full=settings.drop_when_full,
        drop_on_error=settings.drop_on_error,
        sync=sync,
        clock=clock,
    )


async def keep_flushed(log: DecisionLog) -> None:
    """Write the counts of refused keys every few seconds, until cancelled."""
    while True:
        await asyncio.sleep(_FLUSH)
        log.flush()


async def keep_checked(log: DecisionLog) -> None:
    """Find out every second whether decisions can be logged, until cancelled."""
    while True:
        await log.check()
        await asyncio.sleep(_CHECK)
