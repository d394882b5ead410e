"""Deletes many rows in transactions so short that no other writer waits for long.

How many rows fit into one transaction is learned from how long those before took.
"""

import time
from collections.abc import Callable

import sqlalchemy as sa

from policyd.store.database import writing

_LONGEST = {"sqlite": 0.02, "postgresql": 0.2}
"""Seconds that one transaction should take. On SQLite every other writer waits for it."""
_CALL = 1.0
"""Seconds after which run() begins no further transaction."""
_LEAST = 50
_MOST = 5000
"""Rows of one transaction, at least and at most."""
_PAUSE = 0.005
"""Seconds, at least, between two transactions on SQLite, so that another writer may begin."""

Delete = Callable[[sa.Connection, int], int]
"""Deletes up to a number of rows, and returns how many it deleted."""


class Steps:
    """Deletes in the database of `engine`, in steps of a length that it learns."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._longest = _LONGEST[engine.dialect.name]
        self._rows = 100

    def run(self, delete: Delete) -> int:
        """Delete until nothing is left, or for _CALL seconds. Returns how many rows that were."""
        end = time.monotonic() + _CALL
        deleted = 0
        while True:
            with writing(self._engine) as connection:
                began = time.monotonic()
                some = delete(connection, self._rows)
            took = time.monotonic() - began
            deleted += some
            if not some or time.monotonic() > end:
                return deleted
            self._learn(took)
            if self._engine.dialect.name == "sqlite":
                # As long as it took: a waiting writer polls for the lock, and must find a gap.
                time.sleep(max(took, _PAUSE))

    def _learn(self, took: float) -> None:
        if took > self._longest:
            # Not below _LEAST: a commit has a fixed cost, and fewer rows only make more commits.
            self._rows = max(self._rows // 2, _LEAST)
        elif took < self._longest / 2:
            self._rows = min(self._rows * 2, _MOST)


def delete_some(
    connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool], limit: int
) -> int:
    """Delete up to `limit` of the rows that `which` holds for, in the order of their key."""
    key = list(table.primary_key.columns)
    some = sa.select(*key).where(which).order_by(*key).limit(limit)
    place = key[0] if len(key) == 1 else sa.tuple_(*key)
    return connection.execute(sa.delete(table).where(place.in_(some))).rowcount
