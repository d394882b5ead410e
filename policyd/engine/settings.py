"""What is set for policies: by an API key, by a route, or by the server as its default."""

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
    until: float | None = None
    """Seconds since 1970 from which on the secret is no longer in force. None: it has no end."""

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
    """Above those of the server's own settings, policy by policy."""
    end_user_headers: tuple[str, ...] = ()
    """Empty: headers and callers are those of the server's own settings."""
    end_user_callers: tuple[str, ...] = ()
    revision: int = 0
    """Of the settings, by the last change of these. 0: they were not applied yet."""


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
    expires_at: datetime | None = None
    """From then on it is treated as one that was revoked. None: never."""
    previous_until: datetime | None = None
    """Until when the secret before the last rotation is in force. None: there is none."""
    suffix: str = ""
    """The last four characters of the key itself. "": not known."""

    @property
    def etag(self) -> str:
        """Names this state of the key. A revision alone may be another one after a backup was put
        back, and an administrator with the one before would overwrite it."""
        changed = (self.updated_at - _FIRST) // timedelta(microseconds=1)
        return f"{self.revision}-{changed:x}"


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What `digest` now stands for, as its key has changed. None: it is not in force any more."""

    digest: bytes
    settings: KeySettings | None


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """The keys that changed up to `revision`."""

    revision: int
    changed: Collection[KeyChange]
    everything: bool = False
    """Whether these are all keys there are, so that others known before are gone."""
    epoch: str = ""
    """What tells this revision from another one of the same number, in a database that was put back
    from a backup or has lost changes. Keep it beside the revision, and ask with both."""
    defaults: ServerDefaults | None = None
    """The defaults at this revision, whether they have changed or not. None: none were applied."""
