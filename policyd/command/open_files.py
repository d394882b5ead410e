"""How many files this process may have open: every connection is one.

A process that has used up its files can neither take a connection nor begin a segment of the spool.
So the limit is raised as far as possible, and listeners leave some files for everything else.
"""

import logging
import resource
from contextlib import suppress

_log = logging.getLogger(__name__)

MOST = 2**20
"""The limit that is assumed where the system sets none."""
MANY = 10_000
"""Connections of one listener, where nothing else is set."""
RESERVE = 128
"""Files for all but clients' connections: the spool, the database, the event loops, the program,
and connections that are turned away as there is no room."""


def limit() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def hard_limit() -> int:
    """How many files a server may have open here, as it raises its limit as far as it can."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if hard == resource.RLIM_INFINITY else hard


def raise_limit() -> None:
    """Raise the limit as far as the system allows."""
    before = limit()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # Not every system allows what it states as the most.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if limit() != before:
        _log.info("the limit of open files is raised from %d to %d", before, limit())


def share(wanted: int | None, *, each: int, flag: str) -> int:
    """How many connections there may be, up to `wanted`, where each takes `each` files. Where that
    is less than `wanted`, a warning is logged, with the `flag`.

    With `wanted` None, there may be as many as there is room for, up to MANY.
    """
    room = max((limit() - RESERVE) // each, 1)
    if wanted is not None and room < wanted:
        _log.warning(
            "%s is %d, but %d open files leave room for %d connections: raise the process's limit "
            "of open files (ulimit -n; LimitNOFILE= of a systemd unit)",
            *(flag, wanted, limit(), room),
        )
    return min(wanted or MANY, room)
