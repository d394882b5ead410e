"""Gives back the space that retention has freed in a SQLite file, in small steps.

This works for a file that an old version of policyd made only once it has been vacuumed. PostgreSQL
reuses free space by itself.
"""

from collections.abc import Callable

import sqlalchemy as sa

from policyd.store.database import writing

_RESERVE = 0.1
"""The share of the file's pages that stays free, as they are soon needed again."""
_LEAST = 1000
"""Pages of 4 KiB that stay free however small the file is."""
STEP = 500
"""Pages in one transaction, so that no writer waits for long."""


def give_back(engine: sa.Engine) -> int:
    """Give back some of the free pages. Returns how many; call it again until that is 0.

    Raises StoreUnavailable.
    """
    if engine.dialect.name != "sqlite":
        return 0
    with writing(engine) as connection:

        def pragma(name: str) -> int:
            return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

        if pragma("auto_vacuum") == 0:
            return 0
        free = pragma("freelist_count")
        spare = free - max(_LEAST, int(_RESERVE * pragma("page_count")))
        if spare <= 0:
            return 0
        cut(connection.exec_driver_sql, min(spare, STEP))
        return free - pragma("freelist_count")


def cut(execute: Callable[[str], object], pages: int) -> None:
    """Give back this many free pages, in the transaction that `execute` runs statements in."""
    for _ in range(pages):
        # One page at a time: the driver takes a single step of a statement without columns, and a
        # step frees one page.
        execute("PRAGMA incremental_vacuum(1)")
