"""The decision log of one worker, by the settings."""

import asyncio
from collections.abc import Callable

from policyd.decision_log.spool import SpoolWriter
from policyd.decision_log.writer import DecisionLog
from policyd.settings import ServerSettings

_FLUSH = 5.0
"""Seconds between two writes of the counts of refused keys, which are kept in memory."""
_CHECK = 1.0
"""Seconds between two looks at whether decisions can be logged."""


def open_log(settings: ServerSettings, process: str, clock: Callable[[], float]) -> DecisionLog:
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
