"""The values of policyd's domain. Frozen, and of the standard library only.

The enumerations have the numbers of protos/policyd/v1, so that a message's value is the model's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import NamedTuple


class _Number(IntEnum):
    # Enumerations hash by name, in Python; as numbers they are looked up several times as fast.
    __hash__ = int.__hash__


class Mode(_Number):
    """How "Enforce User IDs" treats a request without a user. A larger one is stricter."""

    OFF = 1
    AUDIT = 2
    ENFORCE = 3


class Override(_Number):
    """Whether a request may override its key's mode by the header."""

    ANY = 1
    TIGHTEN_ONLY = 2
    LOCKED = 3


class Source(_Number):
    """Where the mode in force came from."""

    HEADER = 1
    KEY = 2
    DEFAULT = 3
    ROUTE = 4


class Ignored(_Number):
    """Why an override header did not count."""

    NOT_IGNORED = 0
    LOCKED = 1
    TIGHTEN_ONLY = 2
    INVALID = 3


class UserState(_Number):
    """What is known about an end-user identifier. Only VALID counts as a user."""

    UNKNOWN = 0
    VALID = 1
    ABSENT = 2
    EMPTY = 3
    BLANK = 4
    NOT_STRING = 5
    TOO_LONG = 6
    DUPLICATE = 7
    NOT_JSON = 8
    NOT_OBJECT = 9
    TOO_COMPLEX = 10
    BAD_FORM = 11
    BAD_ENCODING = 12
    UNSUPPORTED_ENCODING = 13
    TOO_LARGE = 14

    @property
    def is_unreadable(self) -> bool:
        """Whether the body could not be read, so that its attributes are unknown."""
        return self >= UserState.NOT_JSON


class Credential(_Number):
    """How the request names its API key."""

    GIVEN = 0
    MISSING = 1
    CONFLICTING = 2


USER = "user"
SAFETY_IDENTIFIER = "safety_identifier"
IDENTIFIERS = (USER, SAFETY_IDENTIFIER)
"""The fields of a body that can carry an end-user identifier. An API key that names none accepts
them all."""


def are_identifiers(accept: Iterable[str]) -> bool:
    """Whether an API key can accept these: one or more of IDENTIFIERS, and nothing else."""
    names = set(accept)
    return bool(names) and names <= set(IDENTIFIERS)


MAX_SAFETY_IDENTIFIER = 128
"""Characters of a safety_identifier: OpenAI's limit."""


class Endpoint(NamedTuple):
    """An endpoint that "Enforce User IDs" applies to."""

    operation: str
    """What it does, in the log's words: chat_completion, embedding …"""
    identifiers: tuple[str, ...]
    """The fields of its body that can carry an end-user identifier."""
    takes_form: bool = False
    """Whether its body may be multipart/form-data."""


class Target(NamedTuple):
    """What a request's method and path ask for."""

    in_scope: bool
    endpoint: Endpoint | None = None
    """None where it is out of scope, or where neither method nor path is known."""
    path: str = ""
    """The canonical path, percent-encoded. Empty if out of scope, not known or ambiguous."""
    is_ambiguous: bool = False
    """Whether servers may read its path as different endpoints, so that it must not go upstream."""


class DecisionInput(NamedTuple):
    """What a decision depends on. (A named tuple: it is made for every request.)"""

    target: Target
    credential: Credential
    key: str
    """The API key, where `credential` is GIVEN."""
    overrides: tuple[str, ...]
    """The values of the override header, repeats kept."""
    user: UserState
    safety_identifier: UserState


class ModelState(_Number):
    """What is known about the model that a request names."""

    UNKNOWN = 0
    GIVEN = 1
    ABSENT = 2
    NOT_STRING = 3
    CONFLICTING = 4
    TOO_LONG = 5


class NumberState(_Number):
    """What is known about a number."""

    UNKNOWN = 0
    GIVEN = 1
    ABSENT = 2
    INVALID = 3


class Number(NamedTuple):
    """A number of a request."""

    state: NumberState
    value: int = 0


UNKNOWN_NUMBER = Number(NumberState.UNKNOWN)


class Setting(NamedTuple):
    """One policy's setting on a key, a route or as the server's default."""

    mode: Mode | None = None
    value: str = ""
    """Canonical text, which only the policy's kind parses."""
    override: Override | None = None


def _original(policies: "Policies") -> Setting:  # A stand-in until the core is merged.
    return dict(policies).get("enforce_user_ids", Setting())


Policies = tuple[tuple[str, Setting], ...]
"""Policies' settings by name, in the contract's order."""


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What deciding needs to know of one API key."""

    key_id: str
    policies: tuple[tuple[str, Setting], ...] = ()
    accept: tuple[str, ...] = IDENTIFIERS
    """The identifiers that count as a user. At least one of IDENTIFIERS."""

    def __post_init__(self) -> None:
        if not are_identifiers(self.accept):
            raise ValueError(f"accept must name at least one of {', '.join(IDENTIFIERS)}")

    @property
    def mode(self) -> Mode | None:
        return _original(self.policies).mode

    @property
    def override(self) -> Override:
        return _original(self.policies).override or Override.ANY


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What a gateway's operator sets for a route. It stands above what the key sets."""

    mode: Mode | None = None
    override: Override | None = None
    accept: tuple[str, ...] = ()
    """The identifiers that count as a user. What is None or empty is left to the key."""


_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as its owner sees it. The key itself is not kept anywhere."""

    id: str
    name: str
    policies: tuple[tuple[str, Setting], ...]
    accept: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    revoked_at: datetime | None
    revision: int
    """Of the settings, by the last change to this key."""

    @property
    def etag(self) -> str:
        """Names this state of the key. A revision alone may be another one after a backup was put
        back, and an administrator with the one before would overwrite it."""
        changed = (self.updated_at - _FIRST) // timedelta(microseconds=1)
        return f"{self.revision}-{changed:x}"

    @property
    def mode(self) -> Mode | None:
        return _original(self.policies).mode

    @property
    def override(self) -> Override:
        return _original(self.policies).override or Override.ANY


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One key that changed: what `digest` now stands for. None: it is revoked."""

    digest: bytes
    settings: KeySettings | None


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """The keys that changed up to `revision`."""

    revision: int
    changed: tuple[KeyChange, ...]
    everything: bool = False
    """Whether these are all keys there are, so that others known before are gone."""
    epoch: str = ""
    """What tells this revision from another one of the same number, in a database that was put back
    from a backup or has lost changes. Keep it beside the revision, and ask with both."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A mark on a request in the log."""

    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Denial:
    """The HTTP response that denies a request."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request was decided as it was."""

    mode: Mode | None
    """None where the API key is not in force, so that no mode counted."""
    source: Source | None
    ignored: Ignored
    in_scope: bool
    operation: str
    user_state: UserState
    identifier: str
    summary: str


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What was decided of one request. It is allowed where `denial` is None.

    Compared by identity: equal ones are the same one, as decision.py makes each once.
    """

    denial: Denial | None
    would_deny: bool
    flags: tuple[Flag, ...]
    explanation: Explanation
