"""How many decisions were answered and never logged, by the process that lost them."""

from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from policyd.store.database import metadata, upsert

_lost = sa.Table(
    "log_lost",
    metadata,
    sa.Column("process", sa.String(32), primary_key=True),
    sa.Column("decisions", sa.BigInteger, nullable=False),
)


def total(connection: sa.Connection) -> int:
    """How many decisions all processes have ever lost."""
    return int(connection.execute(sa.select(sa.func.sum(_lost.c.decisions))).scalar_one() or 0)


def lost_by(connection: sa.Connection, processes: Iterable[str]) -> dict[str, int]:
    """How many each of these processes has lost; one that lost none is left out."""
    query = sa.select(_lost).where(_lost.c.process.in_(list(processes)))
    return {row.process: row.decisions for row in connection.execute(query)}


def add(connection: sa.Connection, process: str, number: int) -> None:
    """Count `number` more lost decisions of a process."""
    rows = [{"process": process, "decisions": number}] if number else []
    upsert(connection, _lost, rows, add=("decisions",))


def raise_to(connection: sa.Connection, lost: Mapping[str, int]) -> None:
    """Note how many each process has lost in all. A count that is larger already stays."""
    known = lost_by(connection, lost)
    rows = [
        {"process": process, "decisions": max(count, known.get(process, 0))}
        for process, count in lost.items()
    ]
    upsert(connection, _lost, rows, replace=("decisions",))
