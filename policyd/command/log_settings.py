"""The settings by which a process writes its decision log, which policyd and a gateway that decides
by itself share. Each function declares one, for a field of that name."""

from typing import Literal

from policyd.command.settings import setting

Sync = Literal["always", "interval", "never"]
SYNCS: tuple[Sync, ...] = ("always", "interval", "never")
"""The values of --spool-sync."""
SPOOL_LIMIT = 4 * 2**30
"""Bytes that may wait in the spool by default."""
SPOOL_SYNC: Sync = "interval"
"""When the disk has a decision, by default."""
DROPS = False
"""Whether requests are answered by default where their decisions cannot be logged."""


def spool_limit() -> int:
    """Bytes that may wait in the spool."""
    declared: int = setting(
        SPOOL_LIMIT, "Bytes that may wait in --spool.", unit="bytes", least=2**16
    )
    return declared


def drop_when_full() -> bool:
    """Whether to answer, and count the loss, where the spool is full."""
    declared: bool = setting(
        DROPS,
        "Where no more can wait, by --spool-limit or as the disk is full: answer no request, or "
        "answer and count what is not logged.",
        name="log_full",
        words={"deny": False, "drop": True},
    )
    return declared


def drop_on_error() -> bool:
    """The same where the spool cannot be written for another reason."""
    declared: bool = setting(
        DROPS,
        "The same where the spool cannot be written for another reason: no open files left, a "
        "disk that fails, is read-only or takes over 10 s to sync, a folder that was deleted.",
        name="log_error",
        words={"deny": False, "drop": True},
    )
    return declared


def spool_sync() -> Sync:
    """When the disk has a decision."""
    declared: Sync = setting(
        SPOOL_SYNC,
        "When the disk has a decision: before its answer, which then waits for the disk (always); "
        "a second later, so that a power cut may take the last second or two (interval); or when "
        "the kernel sees fit, about half a minute later (never). A process that is killed loses "
        "nothing.",
        words=SYNCS,
    )
    return declared
