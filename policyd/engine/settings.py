"""What is set for policies: by an API key, by a route, or by the server as defaults."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from policyd.engine.places import IDENTIFIERS, accept_problem
from policyd.engine.states import Mode, Override


class Setting(NamedTuple):
    """What one level sets for one policy: a key, a route, or the server as its default."""

    mode: Mode | None = None
    """None: the next level's."""
    value: str = ""
    """As text that the policy's kind of setting reads: "500", "gpt-4*,o1". It goes with `mode`."""
    override: Override | None = None
    """None: the next level's; ANY where no level sets it."""


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
    until: float | None = None
    """When the secret ceases to be in force, in seconds since 1970. None: never."""

    def __post_init__(self) -> None:
        if problem := accept_problem(self.accept):
            raise ValueError(problem)


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What a gateway's operator sets for a route. It stands above what the key sets."""

    policies: Settings = ()
    accept: tuple[str, ...] = ()
    """The places in which an end user may stand. Empty: those of the key."""


@dataclass(frozen=True, slots=True)
class ServerDefaults:
    """What holds where a key sets nothing, and which headers may name the end user, as
    administrators applied it for all servers of a database."""

    policies: Settings = ()
    """They stand above those of the server's own settings, policy by policy."""
    end_user_headers: tuple[str, ...] = ()
    """Empty: headers and callers are those of the server's own settings."""
    end_user_callers: tuple[str, ...] = ()
    revision: int = 0
    """The revision that the last change of the defaults made. 0: none were applied yet."""


_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as an administrator sees it. The secret itself is not kept anywhere."""

    id: str
    name: str
    policies: Settings
    accept: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    revoked_at: datetime | None
    revision: int
    """The revision that the last change of this key made."""
    expires_at: datetime | None = None
    """When the key ceases to be in force. None: never."""
    previous_until: datetime | None = None
    """Until when the secret before the last rotation is in force. None: there is none."""
    suffix: str = ""
    """The last four characters of the key itself. "": not known."""

    @property
    def etag(self) -> str:
        """Names this state of the key. After a backup was put back, the same revision may be
        another state, which an administrator with the one before would overwrite."""
        changed = (self.updated_at - _FIRST) // timedelta(microseconds=1)
        return f"{self.revision}-{changed:x}"


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What the digest of a key that has changed stands for now."""

    digest: bytes
    settings: KeySettings | None
    """None: the key is no longer in force."""


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """The keys that changed up to `revision`."""

    revision: int
    changed: Collection[KeyChange]
    everything: bool = False
    """Whether these are all keys that exist, so that others known before are gone."""
    epoch: str = ""
    """Tells this revision from another one of the same number, in a database that was put back from
    a backup or has lost changes. Keep it beside the revision, and ask with both."""
    defaults: ServerDefaults | None = None
    """The defaults at this revision, whether they have changed or not. None: none were applied."""
