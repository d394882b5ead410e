"""What a worker offers gateways that decide by themselves: LocalDecisionService, and its token."""

from pathlib import Path

import grpc

from policyd.command.worker_clock import WorkerClock
from policyd.decision_log import spool
from policyd.engine.settings import ServerDefaults
from policyd.errors import SettingsError
from policyd.keys import tokens
from policyd.keys.defaults import in_force
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE
from policyd.server.opening import OpenedStore
from policyd.services import local
from policyd.services.append_decisions import Appending
from policyd.services.authentication import TokenInterceptor
from policyd.services.errors import Note
from policyd.services.followers import Followers
from policyd.services.key_feed import KeyFeed
from policyd.services.watch_keys import KeyWatching
from policyd.settings import ServerSettings
from policyd.store import Store
from policyd.store.destination import NoteShipped

_FLAG = "--local-token-file"
_DAY = 86400.0


class LocalDecisions:
    """Serves gateways that have the token in `path`. Belongs to one event loop."""

    def __init__(
        self,
        path: Path,
        settings: ServerSettings,
        store: Store,
        opened: OpenedStore,
        followers: Followers,
    ) -> None:
        self._path = path
        self._settings = settings
        self._store = store
        self._opened = opened
        self._followers = followers
        self._known = ""

    def guard(self, note: Note) -> TokenInterceptor:
        """What lets only those gateways in. Raises SettingsError."""
        token = tokens.load(self._path, _FLAG)
        for flag, other in self._others().items():
            if token == tokens.load(other, flag):
                raise SettingsError(
                    f"{_FLAG} {self._path} holds the token of {flag}: write another into it, as it "
                    "opens the settings of all API keys and the decision log"
                )
        hint = f"ask policyd's operator for the one in {self._path.name} ({_FLAG})"
        return TokenInterceptor(token, hint, note, only=local.LOCAL)

    def _others(self) -> dict[str, Path]:
        caller = self._settings.caller_token_file
        return {} if caller is None else {"--caller-token-file": caller}

    def handler(
        self,
        keys: StoredKeyTable,
        clock: WorkerClock,
        note: Note,
        note_shipped: NoteShipped | None,
    ) -> grpc.GenericRpcHandler:
        """The service's handler, for a gRPC server. `note` gets each error, and `note_shipped` the
        entries that were shipped to the database."""
        feed = KeyFeed(keys, self._identity, self._defaults)
        watching = KeyWatching(feed, self._followers, clock.time, note)
        settings = self._settings
        appending = Appending(
            *(self._store, self._identity, clock.time, settings.max_clock_skew),
            *(settings.log_retention * _DAY, settings.database_timeout, note, note_shipped),
        )
        return local.handler(watching, appending)

    def _defaults(self, applied: ServerDefaults | None) -> ServerDefaults:
        """What holds for the requests of gateways where a key sets nothing."""
        own = TABLE.with_original(self._settings.default_mode)
        return in_force(applied, own, self._settings.end_users_from, "grpc")

    def _identity(self) -> str:
        """The identity of the database, as soon as it is known."""
        if not self._opened.identity and not self._known and self._settings.spool.is_dir():
            self._known = spool.known_database(self._settings.spool) or ""
        return self._opened.identity or self._known
