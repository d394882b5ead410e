"""Changes of a key's settings, checked against what each policy takes.

A key may have a setting of a policy that this version does not know, as a newer version has written
it. Such a setting stays as it is until an administrator removes it.
"""

from collections.abc import Callable

from policyd.engine.policy import check_settings
from policyd.engine.settings import Setting, Settings
from policyd.errors import InvalidArgument
from policyd.policies import TABLE

Change = Settings | Callable[[Settings], Settings]
"""A key's new settings, or what makes them of those that it has."""


def changed(current: Settings, change: Change) -> Settings:
    """The settings after a change. Raises InvalidArgument."""
    wanted = change(current) if callable(change) else change
    if len(dict(wanted)) < len(wanted):
        raise InvalidArgument("a policy is set twice: set each once")
    # What is there already may stay, or be removed, though this version may not know it.
    known = dict(current)
    wanted = tuple(one for one in wanted if one[1] != Setting() or one[0] not in known)
    kept = [one for one in wanted if one in current]
    try:
        new = check_settings(TABLE, tuple(one for one in wanted if one not in current))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    return TABLE.in_order((*kept, *new))
