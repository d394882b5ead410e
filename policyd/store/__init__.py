"""The database: its tables and queries, and the only SQL of policyd.

One row counts revisions. A change locks it, writes the key with the new number and commits, so the
order of commits is the order of revisions, and `WHERE revision > last` misses nothing.
"""

from collections.abc import AsyncIterator
from datetime import datetime

import sqlalchemy as sa

from policyd.command.database_url import sqlite_file
from policyd.command.deadline import TIMEOUT
from policyd.store import damage, forms, hints
from policyd.store import identity as identities
from policyd.store.administrator import Administrator
from policyd.store.clock import database_time
from policyd.store.database import make_file, metadata, open_engine, reading
from policyd.store.decisions import LogFilter
from policyd.store.history import History
from policyd.store.keys import CHANGEABLE, MAX_NAME, Keys
from policyd.store.log import Log, LogStatus
from policyd.store.migrations import Form
from policyd.store.positions import Positions, Step
from policyd.store.refused_keys import RefusedKeyCounts, RefusedKeys, RefusedSource
from policyd.store.statistics import Counts, Statistics
from policyd.store.workers import Worker, Workers

__all__ = [
    "CHANGEABLE",
    "MAX_NAME",
    "Counts",
    "LogFilter",
    "LogStatus",
    "RefusedKeyCounts",
    "RefusedSource",
    "Step",
    "Store",
    "Worker",
    "metadata",
    "sqlite_file",
]

_installation = sa.Table(
    "installation",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.String(32), nullable=False),
)


class Store:
    """The database at `url`, in SQLAlchemy's form. Threads may share it.

    Every method raises StoreUnavailable where the database cannot be reached or used, or does not
    answer within `timeout` seconds; the few that may take longer have a bound of their own.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        self._url = url
        self._engine = open_engine(url, timeout)
        self.keys = Keys(self._engine)
        self.log = Log(self._engine)
        self.positions = Positions(self._engine)
        self.refused_keys = RefusedKeys(self._engine)
        self.statistics = Statistics(self._engine)
        self.workers = Workers(self._engine)
        self.administrator = Administrator(self._engine)

    def identity(self) -> str:
        """What tells this database from every other one, copies of it aside."""
        with reading(self._engine) as connection:
            return identities.read(connection)

    def time(self) -> datetime:
        """This moment by the database's clock, by which what is stored is looked for."""
        with reading(self._engine) as connection:
            return database_time(connection)

    def hints(self) -> AsyncIterator[None]:
        """Yields when somebody has changed a key, where the database tells: see hints.py."""
        return hints.follow(self._engine)

    def history(self, key_id: str, since: datetime, until: datetime) -> History:
        """A key's logged requests between two moments."""
        return History(self._engine, key_id, since, until)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def expect(self, identity: str) -> None:
        """Use no other database than the one of this identity from now on: WrongDatabase is raised
        for it."""
        identities.expect(self._engine, identity)

    def check(self) -> None:
        """Call it once at a start. Raises StoreUnavailable where the database is damaged, or takes
        no changes; one that is not there yet is neither."""
        file = sqlite_file(self._url)
        if file is None or file.exists():
            damage.check(self._engine)

    def migrate(self, *, make: bool = True) -> None:
        """Bring the tables to this version's form. Several processes may do so at once.

        With `make`, the file of a SQLite database is made where there is none. Raises StoreUnusable
        where this version cannot work on a newer form.
        """
        if make:
            make_file(self._url)
        forms.migrate(self._engine)

    def check_form(self) -> None:
        """Raises StoreUnusable where this version cannot work on the tables as they are."""
        self.form().check()

    def form(self) -> Form:
        """What the database says of its form."""
        return forms.read(self._engine)
