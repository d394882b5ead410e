"""The values of policyd's domain. Frozen, and of the standard library only.

The enumerations have the numbers of protos/policyd/v1, so that a message's value is the model's.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import NamedTuple


class _Number(IntEnum):
    # Enumerations hash by name, in Python; as numbers they are looked up several times as fast.
    __hash__ = int.__hash__


class Mode(_Number):
    """How a policy treats a request that violates it. A larger one is stricter."""

    OFF = 1
    AUDIT = 2
    ENFORCE = 3


class Override(_Number):
    """Whether a request may override a policy's setting by the policy's header."""

    ANY = 1
    TIGHTEN_ONLY = 2
    LOCKED = 3


class Source(_Number):
    """Where the setting in force came from."""

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


class ModelState(_Number):
    """What is known about the model that a request names."""

    UNKNOWN = 0
    GIVEN = 1
    ABSENT = 2
    NOT_STRING = 3
    CONFLICTING = 4
    """Two models that differ."""
    TOO_LONG = 5


class NumberState(_Number):
    """What is known about a number that a policy judges."""

    UNKNOWN = 0
    GIVEN = 1
    ABSENT = 2
    INVALID = 3
    """It is no whole number that can be, or cannot be counted."""


class Number(NamedTuple):
    """A number that a policy judges."""

    state: NumberState
    value: int = 0
    """Where it is GIVEN."""


UNKNOWN_NUMBER = Number(NumberState.UNKNOWN)


class Credential(_Number):
    """How the request names its API key."""

    GIVEN = 0
    MISSING = 1
    CONFLICTING = 2


USER = "user"
SAFETY_IDENTIFIER = "safety_identifier"
METADATA_USER_ID = "metadata.user_id"
"""Anthropic's place: `user_id` in the object `metadata`."""
END_USER_ID = "user_security_context.end_user_id"
"""Azure's place: `end_user_id` in the object `user_security_context`."""
IDENTIFIERS = (USER, SAFETY_IDENTIFIER)
"""The places in which an end user may stand for an API key that names none."""
BODY_PLACES = (USER, SAFETY_IDENTIFIER, METADATA_USER_ID, END_USER_ID)
"""The places of a body in which an end user can stand: its fields, and fields of its objects."""
HEADER_PLACE = "header:"
"""Begins the places that are headers. The header's name follows, in lower case."""
SAFETY_HEADER = "openai-safety-identifier"
"""The header in which some endpoints take what is safety_identifier elsewhere."""
MAX_PLACES = 8
"""Places that an API key can accept."""
_HEADER_PLACE = re.compile(r"header:[a-z0-9-]{1,64}")


def is_place(name: str) -> bool:
    """Whether an end user can stand in the place that is called so."""
    return name in BODY_PLACES or _HEADER_PLACE.fullmatch(name) is not None


def accept_problem(accept: Iterable[str]) -> str:
    """Why an API key cannot accept these places, and what it can accept; "" where it can."""
    places = tuple(accept)
    if not places:
        return f"accept is empty: name at least one of {_PLACES}"
    if unknown := [one for one in places if not is_place(one)]:
        return f"accept names {unknown[0][:80]!r}, in which no end user can stand: name {_PLACES}"
    if repeated := next((one for one in places if places.count(one) > 1), ""):
        return f"accept names {repeated} more than once: name it once"
    if len(places) > MAX_PLACES:
        return f"accept names {len(places)} places: name at most {MAX_PLACES}"
    return ""


_PLACES = f"{', '.join(BODY_PLACES)} and header:NAME (a header's name in lower case)"


def are_identifiers(accept: Iterable[str]) -> bool:
    """Whether an API key can accept these places; accept_problem() says why it cannot."""
    return not accept_problem(accept)


MAX_SAFETY_IDENTIFIER = 128
"""Characters of a safety_identifier: OpenAI's limit."""


class Endpoint(NamedTuple):
    """An endpoint whose requests policies judge."""

    operation: str
    """What it does, in the log's words: chat_completion, embedding …"""
    identifiers: tuple[str, ...]
    """The places of BODY_PLACES that it has. Places that are headers count on every endpoint."""
    takes_form: bool = False
    """Whether its body may be multipart/form-data."""
    takes_sdp: bool = False
    """Whether its body may be application/sdp, which has no place for an end user."""
    takes_model: bool = True
    """Whether its requests name a model, in a field of their own or in the path."""
    safety_header: bool = False
    """Whether SAFETY_HEADER is a place of its safety_identifier, beside the body."""
    safety_in_session: bool = False
    """Whether its safety_identifier stands in the body's object `session`."""
    only_for: str = ""
    """Where it is not empty: the place that a key must accept for it to be in scope."""

    @property
    def further(self) -> tuple[str, ...]:
        """Its places but for IDENTIFIERS."""
        return tuple(one for one in self.identifiers if one not in IDENTIFIERS)

    def is_for(self, accept: Iterable[str]) -> bool:
        """Whether it is in scope for a key that accepts these places."""
        return not self.only_for or self.only_for in accept

    def places(self, accept: Iterable[str]) -> tuple[str, ...]:
        """Those of `accept` in which an end user can stand here."""
        return tuple(
            one for one in accept if one in self.identifiers or one.startswith(HEADER_PLACE)
        )


class Target(NamedTuple):
    """What a request's method and path ask for."""

    in_scope: bool
    """Whether it is for some keys, at least: `endpoint.is_for` tells for which."""
    endpoint: Endpoint | None = None
    """None where it is out of scope, or where neither method nor path is known."""
    path: str = ""
    """The canonical path, percent-encoded. Empty if out of scope, not known or ambiguous."""
    is_ambiguous: bool = False
    """Whether servers may read its path as different endpoints, so that it must not go upstream."""
    model: str = ""
    """The model, deployment or engine that its path names. Empty: none."""
    has_unclear_model: bool = False
    """Whether a server may read another model in its path."""


class EndUser(NamedTuple):
    """What is known about the end user in one place of a request."""

    place: str
    """user, safety_identifier, metadata.user_id, user_security_context.end_user_id, header:NAME."""
    state: UserState
    value: str | None = None
    """Where it is VALID: its first 1,024 characters. None: the caller did not give it."""


NO_END_USER = EndUser("", UserState.ABSENT)
"""The end user of a request that has no place for one."""


class DecisionInput(NamedTuple):
    """What a decision depends on. (A named tuple: it is made for every request.)"""

    target: Target
    credential: Credential
    key: str
    """The API key, where `credential` is GIVEN."""
    overrides: tuple[tuple[str, str], ...] = ()
    """The override headers as name and value, repeats kept, names in lower case."""
    end_users: tuple[EndUser, ...] = ()
    """The places of which something is known."""
    model_state: ModelState = ModelState.UNKNOWN
    model: str = ""
    """The model in the body, where it is GIVEN."""
    token_limit: Number = UNKNOWN_NUMBER
    """The most tokens that the upstream may generate, all choices together."""
    prompt_chars: Number = UNKNOWN_NUMBER
    """Characters of all prompts together."""
    unreadable: UserState = UserState.UNKNOWN
    """Why the body cannot be read, UNKNOWN where it can."""


class Setting(NamedTuple):
    """What one level sets for one policy: a key, a route, or the server as its default."""

    mode: Mode | None = None
    """None: the next level's."""
    value: str = ""
    """As text that the policy's kind of setting reads: "500", "gpt-4*,o1". It goes with `mode`."""
    override: Override | None = None
    """None: the next level's; without any, ANY."""


Settings = tuple[tuple[str, Setting], ...]
"""What one level sets: names of policies, and the setting of each."""


def setting_of(settings: Settings, policy: str) -> Setting:
    """What a level sets for one policy."""
    return next((setting for name, setting in settings if name == policy), Setting())


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What deciding needs to know of one API key."""

    key_id: str
    policies: Settings = ()
    accept: tuple[str, ...] = IDENTIFIERS
    """The places in which an end user may stand: one or more, up to MAX_PLACES."""

    def __post_init__(self) -> None:
        if problem := accept_problem(self.accept):
            raise ValueError(problem)


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What a gateway's operator sets for a route. It stands above what the key sets."""

    policies: Settings = ()
    accept: tuple[str, ...] = ()
    """The places in which an end user may stand. Empty: those of the key."""


_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as its owner sees it. The key itself is not kept anywhere."""

    id: str
    name: str
    policies: Settings
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


class Violation(NamedTuple):
    """How a request violates a policy."""

    message: str
    """For the client, in its denial."""
    words: str
    """For operators: a clause of the explanation."""


MAX_TOLD = 300
"""Characters that answers, explanations and the log tell of a setting's value, or of a message."""


def cut(text: str, length: int) -> str:
    """`text` itself, or its beginning and an ellipsis: `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


class Result(NamedTuple):
    """What one policy found of a request."""

    policy: str
    """Its name."""
    mode: Mode
    """The mode in force, with `value`, from `source`."""
    value: str
    source: Source
    override: Override
    """Which headers may override the setting."""
    ignored: Ignored
    """Why the override header did not count, if there was one."""
    violation: Violation | None = None
    has_failed: bool = False
    """Whether the policy could not judge, so that the request is denied where it is enforced."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request was decided as it was."""

    mode: Mode | None
    """Of the first policy, as source and ignored are. None where the API key is not in force, so
    that no mode counted."""
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
    results: tuple[Result, ...] = ()
    """Of each policy that is set, in the contract's order."""
    missing: tuple[str, ...] = ()
    """What policies in force need, and the caller did not give, so that there is no decision."""
    failures: tuple[tuple[str, Exception], ...] = ()
    """The policies that could not judge, and why."""
