"""Whether requests should be sent to a worker, and what its operator should know while they are.

All of it is what the worker knows anyway: from following the settings, from its signs of life and
from its log. Anyone may probe, without a token, so no text here holds a path, an address or what
the database itself says: the log has that.
"""

import time
from datetime import UTC, datetime

from policyd.decision_log.writer import DecisionLog
from policyd.errors import LogUnwritable
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.server.following import Following
from policyd.server.presence import Presence


class Readiness:
    """The readiness of the worker that decides by `keys` and writes `log`, once it has one."""

    log: DecisionLog | None = None

    def __init__(self, keys: StoredKeyTable, following: Following, presence: Presence) -> None:
        self._keys = keys
        self._following = following
        self._presence = presence

    @property
    def unready(self) -> str:
        """Why requests should not be sent here; "": they may be."""
        return self._following.unready or self._unlogged()

    @property
    def decides(self) -> bool:
        """Whether requests get a decision."""
        return not self.undecided

    @property
    def undecided(self) -> str:
        """Why requests get no decision; "": they get one."""
        return self._unlogged() if self._keys.is_known else "policyd knows no settings yet"

    @property
    def warnings(self) -> list[str]:
        """What is wrong while decisions go on, and since when; a few at most."""
        found = [self._database(), self._unlogged_decisions()]
        return [one for one in found if one]

    def _unlogged(self) -> str:
        """Why requests get no decision though there are settings: the decision log takes none, and
        --log-full or --log-error says to deny then. "": they get one."""
        if self.log is None or not self.log.denies:
            return ""
        return f"{self._log_problem()}: requests get no decision"

    def _database(self) -> str:
        keys = self._keys
        if not keys.is_answered:
            since = _moment(time.time() - keys.staleness())
            if keys.is_wrong_database:
                return f"the database has not been the one it was since {since}"
            return f"the database has been away since {since}"
        if self._presence.failing_since is not None:
            since = _moment(self._presence.failing_since)
            return f"the database has taken no changes since {since}: decisions wait in the spool"
        return ""

    def _unlogged_decisions(self) -> str:
        if self.log is None or self.log.problem is None or self.log.denies:
            return ""
        return f"{self._log_problem()}: decisions are answered and not logged"

    def _log_problem(self) -> str:
        is_error = self.log is not None and isinstance(self.log.problem, LogUnwritable)
        return f"the decision log {'cannot be written' if is_error else 'is full'}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
