"""The errors of policyd. They know no status code: services/errors.py maps them to gRPC's.

PolicydError
├── InvalidDescriptor      a request descriptor is malformed or says too little to decide
├── InvalidArgument        any other value that a caller gave is malformed
├── RevisionNotReached     the revision that a caller asked for is not in force here yet
├── Unauthenticated        a caller did not show the listener's bearer token
├── KeyNotFound            no API key has this ID
├── DecisionNotFound       the log has no decision with this ID
├── LogFull                a decision cannot be logged, as there is no room for it
│   └── LogUnwritable      ... as the disk or the process fails
├── BodiesFull             as many bytes of request bodies are held as may be
├── KeyRevoked             a revoked API key cannot be changed
├── EtagMismatch           the API key has changed since the caller read it
├── PositionMoved          the database has a spool file up to another byte than its shipper thought
├── StoreUnavailable       the database cannot be reached or used
│   ├── StoreUnusable      ... as it is there, and is not one that this version can use
│   └── WrongDatabase      ... as it is not the one that this policyd belongs to
├── SettingsUnknown        no API key's settings are known yet, so nothing can be decided
├── SnapshotUnusable       there is no snapshot of the settings to decide by
├── StoreBusy              as many calls wait for the database as may
├── SettingsError          policyd cannot start with these settings
│   └── NoRoom             ... as the disk is full: with room they will do
├── CannotListen           an address to listen at is taken, or not this machine's
└── NoDecision             policyd gave no decision (what clients raise)
"""


class PolicydError(Exception):
    """Every error that policyd raises on purpose. The message names the cause and the fix."""


class InvalidDescriptor(PolicydError):
    """A request descriptor is malformed or says too little to decide."""


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
    """A decision cannot be logged, so it must not be answered."""


class LogUnwritable(LogFull):
    """A decision cannot be logged, though there would be room: the disk or the process fails."""


class BodiesFull(PolicydError):
    """As many bytes of request bodies are held as may be."""


class KeyRevoked(PolicydError):
    """A revoked API key cannot be changed."""


class EtagMismatch(PolicydError):
    """The API key has changed since the caller read it."""


class PositionMoved(PolicydError):
    """The database has a spool file up to another byte than its shipper thought."""


class StoreUnavailable(PolicydError):
    """The database cannot be reached or used."""


class StoreUnusable(StoreUnavailable):
    """The database is there, and is not one that this version can use: waiting does not help."""


class SettingsUnknown(PolicydError):
    """No API key's settings are known yet, so nothing can be decided."""


class SnapshotUnusable(PolicydError):
    """There is no snapshot of the settings to decide by. The message says why."""


class StoreBusy(PolicydError):
    """As many calls wait for the database as may."""


class WrongDatabase(StoreUnavailable):
    """The database that answers is not the one that this policyd belongs to."""


class SettingsError(PolicydError):
    """policyd cannot start with these settings."""


class NoRoom(SettingsError):
    """A file that policyd needs cannot be made, as the disk is full."""


class CannotListen(PolicydError):
    """An address to listen at is taken, or not this machine's."""


class NoDecision(PolicydError):
    """policyd gave no decision.

    `is_outage` tells that it could not be reached in time from that it would not decide.
    """

    def __init__(self, message: str, *, is_outage: bool = False) -> None:
        super().__init__(message)
        self.is_outage = is_outage
