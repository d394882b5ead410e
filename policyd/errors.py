"""The errors of policyd. They know no status code: services/errors.py maps them to gRPC's.

PolicydError
├── InvalidDescriptor      a request descriptor is malformed, or lacks what a decision needs
├── InvalidArgument        any other value that a caller gave is malformed
├── RevisionNotReached     the revision that a caller asked for is not in force here yet
├── Unauthenticated        a caller did not show the listener's bearer token
├── KeyNotFound            no API key has this ID
├── DecisionNotFound       the log has no decision with this ID
├── LogFull                a decision cannot be logged, as there is no room for it
│   └── LogUnwritable      ... as the disk or the process fails
├── BodiesFull             no more bytes of request bodies may be held
├── NameTaken              another API key that is not revoked has this name
├── OlderServers           servers of an older version would not follow the change
├── KeyRevoked             a revoked API key cannot be changed
├── EtagMismatch           the API key has changed since the caller read it
├── PositionMoved          a spool file is shipped up to another byte than the shipper expected
├── StoreUnavailable       the database cannot be reached or used
│   ├── StoreUnusable      ... as this version cannot work on it
│   ├── WrongDatabase      ... as it is of another installation than this policyd
│   ├── BackupRefused      ... in store/sqlite_files.py: a file cannot be backed up or restored
│   └── CopyRefused        ... in store/copying.py: a database cannot be copied into that one
├── SettingsUnknown        no API key's settings are known yet, so nothing can be decided
├── SnapshotUnusable       there is no snapshot of the settings to decide by
├── TooManyGateways        no more gateways may follow the settings, or append decisions
├── GatewayTooSlow         a gateway takes none of the messages that it asked for
├── StoreBusy              no more calls may wait for the database
├── SettingsError          policyd cannot start with these settings
│   └── NoRoom             ... as the disk is full: with more room, it can
├── CannotListen           an address to listen at is taken, or not this machine's
├── CallFailed             ... in client/admin.py: a call to AdminService failed
└── NoDecision             policyd gave no decision (policyd.client raises it)
    └── Failed             ... in client/statuses.py: with the gRPC status that a call ended with
"""


class PolicydError(Exception):
    """Every error that policyd raises on purpose. The message names the cause and the fix."""


class InvalidDescriptor(PolicydError):
    """A request descriptor is malformed, or lacks what a decision needs."""


class InvalidArgument(PolicydError):
    """A value that a caller gave is malformed."""


class RevisionNotReached(PolicydError):
    """The revision that a caller asked for is not in force here yet."""


class Unauthenticated(PolicydError):
    """A caller did not show the listener's bearer token."""


class KeyNotFound(PolicydError):
    """No API key has this ID."""


class DecisionNotFound(PolicydError):
    """The log has no decision with this ID."""


class LogFull(PolicydError):
    """A decision cannot be logged, as there is no room, so it must not be answered."""


class LogUnwritable(LogFull):
    """A decision cannot be logged, though there may be room: the disk or the process fails."""


class BodiesFull(PolicydError):
    """No more bytes of request bodies may be held."""


class NameTaken(PolicydError):
    """Another API key that is not revoked has this name."""


class OlderServers(PolicydError):
    """Servers of an older version use the database, and would not follow the change."""


class KeyRevoked(PolicydError):
    """A revoked API key cannot be changed."""


class EtagMismatch(PolicydError):
    """The API key has changed since the caller read it."""


class PositionMoved(PolicydError):
    """A spool file is shipped up to another byte than the shipper expected."""


class StoreUnavailable(PolicydError):
    """The database cannot be reached or used."""


class StoreUnusable(StoreUnavailable):
    """The database answers, and this version cannot work on it: waiting does not help."""


class SettingsUnknown(PolicydError):
    """No API key's settings are known yet, so nothing can be decided."""


class SnapshotUnusable(PolicydError):
    """There is no snapshot of the settings to decide by. The message says why."""


class StoreBusy(PolicydError):
    """No more calls may wait for the database."""


class TooManyGateways(PolicydError):
    """No more gateways may follow the settings, or append decisions."""


class GatewayTooSlow(PolicydError):
    """A gateway takes none of the messages that it asked for."""


class WrongDatabase(StoreUnavailable):
    """The database that answers is of another installation than this policyd."""


class SettingsError(PolicydError):
    """policyd cannot start with these settings."""


class NoRoom(SettingsError):
    """A file that policyd needs cannot be made, as the disk is full."""


class CannotListen(PolicydError):
    """An address to listen at is taken, or not this machine's."""


class NoDecision(PolicydError):
    """policyd gave no decision.

    `is_outage`: policyd could not be reached in time. Otherwise it was reached, and did not decide.
    """

    def __init__(self, message: str, *, is_outage: bool = False) -> None:
        super().__init__(message)
        self.is_outage = is_outage


INTERNAL = "INTERNAL"
"""The reason of an error that is none of these: a fault of policyd."""
REASON_OF: dict[type[Exception], str] = {
    InvalidDescriptor: "INVALID_DESCRIPTOR",
    InvalidArgument: "INVALID_ARGUMENT",
    RevisionNotReached: "REVISION_NOT_REACHED",
    Unauthenticated: "UNAUTHENTICATED",
    KeyNotFound: "KEY_NOT_FOUND",
    DecisionNotFound: "DECISION_NOT_FOUND",
    LogFull: "LOG_FULL",
    LogUnwritable: "LOG_UNWRITABLE",
    BodiesFull: "BODIES_FULL",
    KeyRevoked: "KEY_REVOKED",
    NameTaken: "NAME_TAKEN",
    OlderServers: "OLDER_SERVERS",
    EtagMismatch: "ETAG_MISMATCH",
    PositionMoved: "POSITION_MOVED",
    TooManyGateways: "TOO_MANY_GATEWAYS",
    GatewayTooSlow: "GATEWAY_TOO_SLOW",
    StoreBusy: "STORE_BUSY",
    StoreUnavailable: "STORE_UNAVAILABLE",
    WrongDatabase: "WRONG_DATABASE",
    StoreUnusable: "STORE_UNAVAILABLE",
    SettingsUnknown: "SETTINGS_UNKNOWN",
}
"""The reason by which programs, and metrics, tell each error that a caller may get."""
REASONS = (*dict.fromkeys(REASON_OF.values()), INTERNAL)
"""The reasons of all errors."""


def reason_of(error: Exception) -> str:
    """The reason with which `error` is reported, and counted."""
    return REASON_OF.get(type(error), INTERNAL)
