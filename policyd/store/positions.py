"""How far each file of a spool has been shipped: committed together with what was shipped.

So the store recognises entries that a shipper hands over again, after a crash or because it never
heard that a transaction was committed, even where their rows have been retired since.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from policyd.errors import PositionMoved
from policyd.store.clock import database_time
from policyd.store.database import Moment, metadata, reading, upsert, writing

_KEEP = timedelta(days=30)
"""How long the positions of a spool stay after its shipper last kept them."""

_positions = sa.Table(
    "spool_positions",
    metadata,
    sa.Column("spool", sa.String(32), primary_key=True),
    sa.Column("file", sa.String(64), primary_key=True),
    sa.Column("shipped", sa.BigInteger, nullable=False),
    sa.Column("seen_at", Moment, nullable=False),
)
_column = _positions.c
_shipped = (
    sa.select(_column.shipped)
    .where(_column.spool == sa.bindparam("of_spool"), _column.file == sa.bindparam("of_file"))
    .with_for_update()
)


@dataclass(frozen=True, slots=True)
class Step:
    """The part of a file that one transaction ships: the bytes from `start` to `end`."""

    spool: str
    """The identity of the spool that the file is in."""
    file: str
    start: int
    end: int


def advance(connection: sa.Connection, step: Step) -> None:
    """Note that the file is shipped up to the step's end, in the transaction that ships it.

    Raises PositionMoved where the database does not have it up to the step's start.
    """
    of_file = {"of_spool": step.spool, "of_file": step.file}
    shipped = connection.execute(_shipped, of_file).scalar_one_or_none() or 0
    if shipped != step.start:
        raise PositionMoved(
            f"{step.file} is shipped up to byte {shipped}, not {step.start}: the database was put "
            "back from a copy, or it has committed a transaction without saying so"
        )
    row = {"spool": step.spool, "file": step.file, "shipped": step.end}
    row["seen_at"] = database_time(connection)
    upsert(connection, _positions, [row], replace=("shipped", "seen_at"))


class Positions:
    """The positions in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def read(self, spool: str) -> dict[str, int]:
        """How far each file of a spool has been shipped, in bytes."""
        query = sa.select(_column.file, _column.shipped).where(_column.spool == spool)
        with reading(self._engine) as connection:
            return {row.file: row.shipped for row in connection.execute(query)}

    def forget(self, spool: str, files: Iterable[str]) -> None:
        """Delete the positions of files that are gone for good."""
        gone = sa.delete(_positions).where(_column.spool == spool, _column.file.in_(list(files)))
        with writing(self._engine) as connection:
            connection.execute(gone)

    def keep(self, spool: str) -> None:
        """Keep this spool's positions for another month: call it every day. Those of spools that no
        shipper has kept for a month are deleted, as their machines are gone."""
        with writing(self._engine) as connection:
            at = database_time(connection)
            own = sa.update(_positions).where(_column.spool == spool)
            connection.execute(own.values(seen_at=at))
            connection.execute(sa.delete(_positions).where(_column.seen_at < at - _KEEP))
