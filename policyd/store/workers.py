"""Which workers run, at which revision each decides, and how far its clock is off; and which
gateways decide by themselves, by the settings that a worker sends them.

All of it goes by the database's clock, so that a worker with a wrong clock hides no other.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from policyd.errors import OlderServers
from policyd.store import migrations
from policyd.store.clock import clock_offset, database_time
from policyd.store.database import Moment, metadata, reading, upsert, writing
from policyd.store.epochs import epochs

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
    sa.Column("epoch", sa.String(32)),
    sa.Column("clock_offset_us", sa.BigInteger),
    sa.Column("form", sa.String(32)),
    sa.Column("kind", sa.String(16), nullable=False, server_default="worker"),
)
_WORKER = "worker"
_GATEWAY = "gateway"
_FOLLOWS = "0012"
"""The first form whose workers follow rotation, expiry and the server's defaults."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that answers gateways, or a gateway's process that decides by itself."""

    id: str
    host: str
    revision: int
    """The revision that it decides at. 0: this database does not have that one, or no longer."""
    seen_at: datetime
    clock_offset: timedelta | None = None
    """How far its clock is ahead of the database's. None: a worker of an older version, or a
    gateway, which goes by its worker's clock."""
    is_gateway: bool = False


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway's process that decides by itself."""

    id: str
    host: str
    revision: int
    """The revision that it decides at, and ..."""
    epoch: str
    """... that revision's epoch."""


class Workers:
    """The workers in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def beat(
        self,
        worker_id: str,
        host: str,
        revision: int,
        epoch: str | None = None,
        gateways: Sequence[Gateway] = (),
        left: Collection[str] = (),
    ) -> timedelta:
        """Note that a worker runs, and at which revision and epoch it decides; the same for the
        gateways that follow it; and that those with the IDs `left` have ended.

        Returns how far this process's clock is ahead of the database's.
        """
        row = {"id": worker_id, "host": host[:256], "revision": revision, "epoch": epoch}
        with writing(self._engine) as connection:
            at, offset = clock_offset(connection)
            row |= {"seen_at": at, "clock_offset_us": offset // timedelta(microseconds=1)}
            row |= {"form": migrations.HEAD, "kind": _WORKER}
            rows = [row, *(_row(one) | {"seen_at": at} for one in gateways)]
            # In one order, as a gateway that changes over may be noted by two workers at once.
            rows.sort(key=itemgetter("id"))
            replace = ("host", "revision", "seen_at", "epoch", "clock_offset_us", "form", "kind")
            upsert(connection, _workers, rows, replace=replace)
            _leave(connection, left)
            # A beat far in the future is from an old version, which went by its own clock, or from
            # before the database's clock was corrected.
            known = _workers.c.seen_at.between(at - _KEEP, at + _KEEP)
            connection.execute(sa.delete(_workers).where(~known))
        return offset

    def leave(self, *ids: str) -> None:
        """Note that workers or gateways have ended."""
        with writing(self._engine) as connection:
            _leave(connection, ids)

    def list(self) -> list[Worker]:
        """The workers and gateways that run, in the order of their IDs."""
        column = _workers.c
        query = sa.select(_workers, epochs.c.epoch.label("known_epoch"))
        query = query.outerjoin_from(_workers, epochs, epochs.c.revision == column.revision)
        with reading(self._engine) as connection:
            query = query.where(_runs(connection))
            return [
                Worker(
                    row.id,
                    row.host,
                    row.revision if row.epoch in (None, row.known_epoch) else 0,
                    row.seen_at,
                    _offset(row.clock_offset_us),
                    row.kind == _GATEWAY,
                )
                for row in connection.execute(query.order_by(column.id))
            ]


def furthest_off(workers: Iterable[Worker]) -> tuple[str, timedelta] | None:
    """The host whose clock is furthest off, of these workers, and how far it is ahead.

    None: no clock was measured.
    """
    told = [(one.host, one.clock_offset) for one in workers]
    known = [(host, offset) for host, offset in told if offset is not None]
    return max(known, key=lambda one: abs(one[1]), default=None)


def _row(gateway: Gateway) -> dict[str, Any]:
    return {
        "id": gateway.id,
        "host": gateway.host[:256],
        "revision": gateway.revision,
        "epoch": gateway.epoch,
        "clock_offset_us": None,
        # The settings that gateways are sent include rotation, expiry and defaults, whatever the
        # gateway's version.
        "form": migrations.HEAD,
        "kind": _GATEWAY,
    }


def _leave(connection: sa.Connection, ids: Collection[str]) -> None:
    if ids:
        connection.execute(sa.delete(_workers).where(_workers.c.id.in_(list(ids))))


def hosts(connection: sa.Connection) -> list[str]:
    """The hosts that workers run on, in a database of any form that has a table of workers.

    Gateways' hosts are among them: forms before 0015 do not tell gateways from workers, and where a
    gateway is noted, its worker has run until just now.
    """
    query = sa.select(_workers.c.host).where(_runs(connection)).distinct()
    return sorted(connection.execute(query).scalars())


def check_all_follow(connection: sa.Connection) -> None:
    """Raises OlderServers where a worker runs that would not follow a key's rotation or expiry, or
    the server's defaults: there, an ended secret or key would stay in force."""
    follows = sa.func.coalesce(_workers.c.form, "") >= _FOLLOWS
    query = sa.select(_workers.c.host).where(_runs(connection), ~follows).distinct()
    if found := sorted(connection.execute(query).scalars()):
        raise OlderServers(
            f"policyd serve of an older version uses the database (on {', '.join(found)}), and "
            "knows no rotation, expiry or defaults of the database: upgrade it first"
        )


def _runs(connection: sa.Connection) -> sa.ColumnElement[bool]:
    now = database_time(connection)
    return _workers.c.seen_at.between(now - _ALIVE, now + _ALIVE)


def _offset(microseconds: int | None) -> timedelta | None:
    return None if microseconds is None else timedelta(microseconds=microseconds)
