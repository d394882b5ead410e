"""Opening the database of a server: before a worker reads settings, the database must have this
version's form, and be the one that the spool is for. The worker opens it again and again until it
answers."""

from policyd.decision_log import spool
from policyd.engine.settings import KeyChanges
from policyd.errors import NoRoom, SettingsError, StoreUnavailable
from policyd.settings import ServerSettings
from policyd.store import Store

_IDENTIFIED = "0002"
"""The first form of a database that has an identity."""


class OpenedStore:
    """A `store` that open() has to open, in as many tries as that takes. Threads may share it."""

    def __init__(self, store: Store, settings: ServerSettings) -> None:
        self._store = store
        self._spool = settings.spool
        self._migrates = settings.migrate
        self._is_marked = False
        self.identity = ""
        """The database's identity, once it is open."""

    def open(self) -> None:
        """Open it. Raises StoreUnavailable; SettingsError where the spool is another database's."""
        self._store.check()
        self._claim()
        if self._migrates:
            self._store.migrate(make=False)
        else:
            self._store.check_form()
        identity = self._store.identity()
        self._mark(identity)
        # From now on, settings come from no other database, and the log goes to no other one.
        self._store.expect(identity)
        self.identity = identity

    def _claim(self) -> None:
        """Make sure that the database is the spool's before anything in it is changed.

        Raises SettingsError where it is not; the store then refuses to use it.
        """
        revision = self._store.form().revision
        if revision is None or revision < _IDENTIFIED:
            return
        try:
            self._mark(self._store.identity())
        except SettingsError:
            self._store.expect(spool.known_database(self._spool) or "")
            raise

    def changes_since(self, revision: int, epoch: str) -> KeyChanges:
        """See Keys.changes_since(). Raises StoreUnavailable, also before the database is open."""
        if not self.identity:
            raise StoreUnavailable("the database has not answered yet")
        if not self._is_marked:
            self._mark(self.identity)
        return self._store.keys.changes_since(revision, epoch)

    def _mark(self, identity: str) -> None:
        """Mark the spool as this database's. On a full disk, changes_since() marks it later."""
        try:
            spool.prepare(self._spool, identity)
            self._is_marked = True
        except NoRoom:
            self._is_marked = False
