"""Changes of a key's settings, checked against what each policy takes.

A key may have a setting of a policy that this version does not know, because a newer version wrote
it. Such a setting stays as it is until an administrator removes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from policyd.engine.places import IDENTIFIERS
from policyd.engine.policy import check_settings
from policyd.engine.settings import ApiKey, ServerDefaults, Setting, Settings
from policyd.errors import InvalidArgument
from policyd.keys.audit import Action
from policyd.policies import TABLE

Change = Settings | Callable[[Settings], Settings]
"""A key's new settings, or a function that makes them from those that it has."""


@dataclass(frozen=True, slots=True)
class DeclaredKey:
    """A key that should be there, known by its name. What is left out is not set."""

    name: str
    policies: Settings = ()
    accept: tuple[str, ...] = IDENTIFIERS
    expires_at: datetime | None = None
    digest: str | None = None
    """The SHA-256 of its secret in hexadecimal. None: the secret stays as it is, or is made."""


@dataclass(frozen=True, slots=True)
class AppliedChange:
    """What applying a declaration changed, or would change: a key, or the defaults."""

    action: Action
    before: ApiKey | None = None
    after: ApiKey | None = None
    """A key that would be created has no ID yet."""
    secret: str = ""
    """The secret of a key that was created. Empty: none was, or its digest was declared."""
    defaults_before: ServerDefaults | None = None
    defaults_after: ServerDefaults | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a declaration changed, keys first, or would change."""

    changes: tuple[AppliedChange, ...]
    revision: int
    """The revision in which all of it is in force."""


def changed(current: Settings, change: Change) -> Settings:
    """The settings after a change. Raises InvalidArgument."""
    wanted = change(current) if callable(change) else change
    if len(dict(wanted)) < len(wanted):
        raise InvalidArgument("a policy is set twice: set each once")
    # What the key has already may stay, or be removed, even if this version does not know it.
    known = dict(current)
    wanted = tuple(one for one in wanted if one[1] != Setting() or one[0] not in known)
    kept = [one for one in wanted if one in current]
    try:
        new = check_settings(TABLE, tuple(one for one in wanted if one not in current))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    return TABLE.in_order((*kept, *new))
