"""The server's defaults in force: what administrators applied, above the server's own settings.

All that decide or explain decisions take them from here: workers, the console, the commands.
"""

from collections.abc import Callable

from policyd.engine.settings import ServerDefaults, Setting, Settings
from policyd.keys.key_table import KeyTable
from policyd.policies import TABLE


def above(applied: ServerDefaults | None, own: Settings) -> Settings:
    """The settings that hold for keys that set nothing, where the server's own are `own`."""
    if applied is None or not applied.policies:
        return own
    lower = dict(own)
    held = {name: _over(one, lower.get(name, Setting())) for name, one in applied.policies}
    return TABLE.in_order({**lower, **held}.items())


def _over(one: Setting, lower: Setting) -> Setting:
    mode = one if one.mode else lower
    return Setting(mode.mode, mode.value, one.override or lower.override)


def trusted_headers(
    applied: ServerDefaults | None, own: Callable[[str], frozenset[str]], caller: str
) -> frozenset[str]:
    """The headers that may name the end user where a caller of this kind sends them."""
    if applied is None or not applied.end_user_headers:
        return own(caller)
    return frozenset(applied.end_user_headers if caller in applied.end_user_callers else ())


def in_force(
    applied: ServerDefaults | None,
    own: Settings,
    own_headers: Callable[[str], frozenset[str]],
    caller: str,
) -> ServerDefaults:
    """All defaults for a caller of this kind that decides by itself and has no settings of its
    own."""
    headers = trusted_headers(applied, own_headers, caller)
    revision = applied.revision if applied else 0
    return ServerDefaults(above(applied, own), tuple(sorted(headers)), (caller,), revision)


def _none(_: str) -> frozenset[str]:
    return frozenset()


class Defaults:
    """The defaults in a worker that follows `keys`. `own` are those of the server's own settings,
    and `own_headers` says which headers these trust from a kind of caller."""

    def __init__(
        self,
        keys: KeyTable,
        own: Settings = (),
        own_headers: Callable[[str], frozenset[str]] = _none,
    ) -> None:
        self._keys = keys
        self._own = own
        self._own_headers = own_headers
        self._applied: ServerDefaults | None = None
        self._policies = own
        self._headers: dict[str, frozenset[str]] = {}

    @property
    def policies(self) -> Settings:
        """The settings that hold for keys that set nothing."""
        if self._keys.defaults is not self._applied:
            self._follow()
        return self._policies

    def trusted(self, caller: str) -> frozenset[str]:
        """The headers that may name the end user where a caller of this kind sends them."""
        if self._keys.defaults is not self._applied:
            self._follow()
        found = self._headers.get(caller)
        if found is None:
            found = trusted_headers(self._applied, self._own_headers, caller)
            self._headers[caller] = found
        return found

    def _follow(self) -> None:
        self._applied = self._keys.defaults
        self._policies = above(self._applied, self._own)
        self._headers = {}
