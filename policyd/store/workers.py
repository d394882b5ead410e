"""Which workers there are, and from which revision of the settings each decides."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from policyd.store.database import Moment, metadata, now, reading, upsert, writing

_ALIVE = timedelta(seconds=15)
"""How long after its last beat a worker counts as running."""
_KEEP = timedelta(days=1)

_workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("host", sa.String(256), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("seen_at", Moment, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that answers gateways."""

    id: str
    host: str
    revision: int
    seen_at: datetime


class Workers:
    """The workers in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def beat(self, worker_id: str, host: str, revision: int) -> None:
        """Tell that a worker runs, and at which revision."""
        at = now()
        row = {"id": worker_id, "host": host[:256], "revision": revision, "seen_at": at}
        with writing(self._engine) as connection:
            upsert(connection, _workers, [row], replace=("host", "revision", "seen_at"))
            connection.execute(sa.delete(_workers).where(_workers.c.seen_at < at - _KEEP))

    def leave(self, worker_id: str) -> None:
        """Tell that a worker has ended."""
        with writing(self._engine) as connection:
            connection.execute(sa.delete(_workers).where(_workers.c.id == worker_id))

    def list(self) -> list[Worker]:
        """Those that run, by their ID."""
        alive = _workers.c.seen_at > now() - _ALIVE
        query = sa.select(_workers).where(alive).order_by(_workers.c.id)
        with reading(self._engine) as connection:
            return [
                Worker(row.id, row.host, row.revision, row.seen_at)
                for row in connection.execute(query)
            ]
