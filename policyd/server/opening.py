"""Opening the database of a server: before settings are read, the database is brought to this
version's form, and must be the one that the spool is for. Until it answers, opening is repeated."""

from policyd.decision_log import spool
from policyd.engine.settings import KeyChanges
from policyd.errors import NoRoom, SettingsError, StoreUnavailable
from policyd.settings import ServerSettings
from policyd.store import Store

_IDENTIFIED = "0002"
"""The first form of a database that has an identity."""


class OpenedStore:
    """A `store` that open() has to open, as often as it takes. Threads may share it."""

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
        # From here on, settings are read from no other database, and the log is shipped to none.
        self._store.expect(identity)
        self.identity = identity

    def _claim(self) -> None:
        """Make sure that the database is the spool's before anything in it is changed.

        Raises SettingsError where it is not, and then uses it for nothing from then on.
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
        """See Keys.changes_since(). Raises StoreUnavailable, also where it is not open yet."""
        if not self.identity:
            raise StoreUnavailable("the database has not answered yet")
        if not self._is_marked:
            self._mark(self.identity)
        return self._store.keys.changes_since(revision, epoch)

    def _mark(self, identity: str) -> None:
        """Mark the spool as this database's. On a full disk it is marked later."""
        try:
            spool.prepare(self._spool, identity)
            self._is_marked = True
        except NoRoom:
            self._is_marked = False
