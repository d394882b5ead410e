"""Headers that an operator trusts to name the end user, and what they hold."""

from collections.abc import Iterable

from policyd.descriptor.headers import is_own
from policyd.descriptor.identifiers import MAX_VALUE
from policyd.engine import method_override
from policyd.engine.places import HEADER_PLACE, MAX_PLACES, is_place
from policyd.errors import SettingsError

# The values of trusted headers are logged, so none may hold a secret; and some of these say how a
# request is read.
_OTHERWISE_USED = method_override.HEADERS | {
    "api-key",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-goog-api-key",
    "x-policyd-body",
    "x-policyd-token",
}


CALLERS = ("grpc", "http", "envoy")
"""The kinds of callers, by the words that operators use."""
_FLAGS = ("--end-user-headers", "--end-user-callers")


def check_end_users(
    headers: tuple[str, ...], callers: tuple[str, ...], names: tuple[str, str] = _FLAGS
) -> None:
    """Raises SettingsError where these headers cannot be trusted when these callers send them.

    `names` are what an error calls the two settings.
    """
    check_end_user_headers(headers, names[0])
    for caller in callers:
        if caller not in CALLERS:
            raise SettingsError(f"{names[1]} takes {', '.join(CALLERS)}, not {caller[:80]!r}")
    if bool(headers) != bool(callers):
        raise SettingsError(f"{names[0]} and {names[1]} go together: give both or neither")


def check_end_user_headers(names: Iterable[str], flag: str = _FLAGS[0]) -> None:
    """Raises SettingsError where --end-user-headers, or the setting `flag`, cannot list these."""
    given = tuple(names)
    for name in given:
        if not is_place(HEADER_PLACE + name):
            raise SettingsError(
                f"{flag} takes names of headers in lower case, such as "
                f"x-forwarded-user, not {name[:80]!r}"
            )
        if name in _OTHERWISE_USED or is_own(name):
            raise SettingsError(
                f"{flag} {name} has another meaning, and its values would be logged: "
                "list a header that holds end users and nothing else"
            )
    if len(given) > MAX_PLACES:
        raise SettingsError(f"{flag} takes up to {MAX_PLACES} headers")


def value(text: str) -> str:
    """A header's value as a message can hold it. Some adapters decode UTF-8 as Latin-1."""
    if text.isascii():
        return text[:MAX_VALUE]
    try:
        return text.encode("latin-1").decode()[:MAX_VALUE]
    except UnicodeError:
        return text.encode("utf-8", "replace").decode()[:MAX_VALUE]
