"""Free space is given back: what retention has deleted leaves the SQLite file, in small steps.

A file that an older policyd has made can do so once it was vacuumed. PostgreSQL does it by itself.
"""

import sqlalchemy as sa

from policyd.store.database import writing

_RESERVE = 0.1
"""The share of the file that stays free, as it is soon needed again."""
_LEAST = 1000
"""Pages of 4 KiB that stay free however small the file is."""
_STEP = 500
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
        # By the driver: a page goes with each row that is fetched, of which SQLAlchemy knows none.
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA incremental_vacuum({min(spare, _STEP)})")
        cursor.fetchall()
        return free - pragma("freelist_count")
