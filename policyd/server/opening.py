"""The database as a server comes to it: brought to this version's form, and known to be the one
that the spool is for, before anything is read. Until it answers, that is tried again and again."""

from policyd.decision_log import spool
from policyd.engine.model import KeyChanges
from policyd.errors import NoRoom, SettingsError, StoreUnavailable
from policyd.settings import ServerSettings
from policyd.store import Store

_IDENTIFIED = "0002"
"""The first form of a database that has an identity."""


class OpenedStore:
    """`store`, opened when it is first asked, and again until that works. Threads may share it."""

    def __init__(self, store: Store, settings: ServerSettings) -> None:
        self._store = store
        self._spool = settings.spool
        self._migrates = settings.migrate
        self._is_marked = False
        self.identity = ""
        """Of the database, once it is open."""

    def open(self) -> None:
        """Raises StoreUnavailable, or SettingsError where the spool is for another database."""
        self._store.check()
        self._claim()
        if self._migrates:
            self._store.migrate(make=False)
        else:
            self._store.check_form()
        identity = self._store.identity()
        self._mark(identity)
        # From here on, another one is no place to read settings from or to ship the log to.
        self._store.expect(identity)
        self.identity = identity

    def _claim(self) -> None:
        """See that the database is the spool's before anything is changed there. Raises
        SettingsError; another one is used for nothing from then on."""
        revision = self._store.form().revision
        if revision is None or revision < _IDENTIFIED:
            return
        try:
            self._mark(self._store.identity())
        except SettingsError:
            self._store.expect(spool.known_database(self._spool) or "")
            raise

    def changes_since(self, revision: int, epoch: str) -> KeyChanges:
        """See Store. Raises StoreUnavailable, also where it is not open yet."""
        if not self.identity:
            raise StoreUnavailable("the database has not answered yet")
        if not self._is_marked:
            self._mark(self.identity)
        return self._store.keys.changes_since(revision, epoch)

    def _mark(self, identity: str) -> None:
        """Have the spool say whose entries it holds. A full disk takes that later."""
        try:
            spool.prepare(self._spool, identity)
            self._is_marked = True
        except NoRoom:
            self._is_marked = False
