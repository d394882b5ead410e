"""The database: its tables and queries, and the only SQL of policyd.

`Store` is all that the rest of policyd sees of it: a few methods of its own, and one part for each
kind of thing that it keeps:

    keys              API keys, one at a time; key_rows has their table, key_settings its columns
    key_list          keys, searched and sorted; key_batches: several changed in one revision
    key_indexes       of the list of keys; index_building: on PostgreSQL, while servers write
    declaring         keys and defaults as an operator declares them, in one revision
    revisions         the number of the settings; defaults: the server's, for all keys
    key_changes       what workers follow: digests in force, and the defaults
    audit             what administrators did
    epochs, hints     what tells equal revisions apart; notifications that settings have changed
    log               decisions and outcomes as the shipper appends them, and as pages read them;
                      destination: where a spool is shipped to
    outcomes          outcomes that wait for their decision
    positions         how far each file of a spool has been shipped
    refused_keys      requests without a key in force, counted apart from the log
    losses, log_size  decisions that were lost; how many the log holds
    decisions         the table of decisions
    log_filter        which decisions are wanted
    log_pages         pages of them along the indexes, and searches where no index helps
    counts            counts by hour, key, end user and model, which change with the log
    latencies         counts of how long requests took
    statistics        sums of these, for the console
    history           a key's requests by kind, for simulations
    workers           which workers run, and at which revision each decides
    administrator     the console's password and sessions

What deletes: retention (how much may go), log_deletion (deletes it), steps (in short transactions),
partitions (of PostgreSQL, by day), space (gives free pages back); sample, for the demo's requests.

What is below: database (transactions, bounds, errors), engine (SQLAlchemy's, with its connections),
postgresql, many_rows (statements for many rows), database_file and checkpoints (SQLite's file,
which others may replace), sqlite_errors, clock (the database's), identity (of the database),
damage (whether it can be used).

The form of the tables: schema (brings a database to it, while servers use it), migrations/,
log_indexes. What `policyd db` does: upkeep (status), copying (copy), sqlite_files (backup,
restore, vacuum).
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import sqlalchemy as sa

from policyd.command.database_url import sqlite_file
from policyd.command.deadline import TIMEOUT
from policyd.engine.policy import Need
from policyd.engine.settings import ServerDefaults
from policyd.keys.settings import Applied, DeclaredKey
from policyd.store import damage, declaring, defaults, hints, schema
from policyd.store import identity as identities
from policyd.store.administrator import Administrator
from policyd.store.audit import Audit
from policyd.store.clock import database_time
from policyd.store.counts import Counts
from policyd.store.database import metadata, reading
from policyd.store.engine import make_file, open_engine
from policyd.store.history import History
from policyd.store.key_batches import KeyBatches
from policyd.store.key_list import KeyFilter, KeyList
from policyd.store.key_rows import CHANGEABLE, MAX_NAME
from policyd.store.keys import MAX_KEEP, Keys
from policyd.store.latencies import Latencies
from policyd.store.log import Log, LogStatus
from policyd.store.log_filter import LogFilter
from policyd.store.log_pages import Page
from policyd.store.migrations import Form
from policyd.store.positions import Positions, Step
from policyd.store.refused_keys import RefusedKeyCounts, RefusedKeys, RefusedSource
from policyd.store.statistics import Statistics
from policyd.store.workers import Worker, Workers

__all__ = [
    "CHANGEABLE",
    "MAX_KEEP",
    "MAX_NAME",
    "Counts",
    "KeyFilter",
    "Latencies",
    "LogFilter",
    "LogStatus",
    "Page",
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
    """The database at `url`, a URL as SQLAlchemy takes it. Threads may share it.

    Every method raises StoreUnavailable where the database cannot be reached or used, or does not
    answer within `timeout` seconds; the few that may take longer have a bound of their own.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        self._url = url
        self._engine = open_engine(url, timeout)
        self.keys = Keys(self._engine)
        self.key_list = KeyList(self._engine)
        self.key_batches = KeyBatches(self._engine)
        self.audit = Audit(self._engine)
        self.log = Log(self._engine)
        self.positions = Positions(self._engine)
        self.refused_keys = RefusedKeys(self._engine)
        self.statistics = Statistics(self._engine)
        self.workers = Workers(self._engine)
        self.administrator = Administrator(self._engine)

    def identity(self) -> str:
        """The identity of this installation's database. Only copies of it have the same."""
        with reading(self._engine) as connection:
            return identities.read(connection)

    def time(self) -> datetime:
        """This moment by the database's clock. Queries of what is stored start from it."""
        with reading(self._engine) as connection:
            return database_time(connection)

    def defaults(self) -> ServerDefaults | None:
        """The server's defaults, as administrators applied them. None: none were applied."""
        with reading(self._engine) as connection:
            return defaults.read(connection)

    def apply(
        self,
        declared: Sequence[DeclaredKey],
        wanted: ServerDefaults | None = None,
        *,
        prune: bool = False,
        dry_run: bool = False,
        by: str = "",
    ) -> Applied:
        """Bring the keys, known by their names, and the server's defaults to what is declared: all
        of it in one revision, or nothing. Without `wanted`, the defaults stay as they are.

        With `prune`, every key that is not declared is revoked. With `dry_run`, the changes are
        only reported, and none is made. A declared digest that is not the key's takes the place of
        its secret, which ends at once.

        Raises InvalidArgument or OlderServers.
        """
        work = (self._engine, declared, wanted)
        return declaring.apply(*work, prune=prune, dry_run=dry_run, by=by)

    def hints(self) -> AsyncIterator[None]:
        """Yields when a key has changed, on databases that send notifications: see hints.py."""
        return hints.follow(self._engine)

    def history(
        self,
        key_id: str,
        since: datetime,
        until: datetime,
        needs: frozenset[Need] = frozenset(),
    ) -> History:
        """A key's logged requests between two moments, with what policies look at."""
        return History(self._engine, key_id, since, until, needs)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def expect(self, identity: str) -> None:
        """Use only the database of this identity from now on. Another one raises WrongDatabase."""
        identities.expect(self._engine, identity)

    def check(self) -> None:
        """Raises StoreUnavailable where the database is damaged or read-only. For the start: a
        missing file passes."""
        file = sqlite_file(self._url)
        if file is None or file.exists():
            damage.check(self._engine)

    def why_unchangeable(self) -> str:
        """Why the database takes no changes, though it answers; "": it takes them."""
        return damage.why_unchangeable(self._engine)

    def migrate(self, *, make: bool = True) -> None:
        """Bring the tables to this version's form. Several processes may do so at once.

        With `make`, the file of a SQLite database is made where there is none. Raises StoreUnusable
        where this version cannot work on a newer form.
        """
        if make:
            make_file(self._url)
        schema.migrate(self._engine)

    def check_form(self) -> None:
        """Raises StoreUnusable where this version cannot work on the tables as they are."""
        self.form().check()

    def form(self) -> Form:
        """The database's form, and which versions of policyd can use it."""
        return schema.read(self._engine)
