"""Headers that an operator trusts to name the end user, and what they hold."""

from collections.abc import Iterable

from policyd.descriptor.headers import is_own
from policyd.descriptor.identifiers import MAX_VALUE
from policyd.engine import method_override
from policyd.engine.places import HEADER_PLACE, MAX_PLACES, is_place
from policyd.errors import SettingsError

# What they hold is logged, so none may be a secret; and by the others requests are read.
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


def check_end_user_headers(names: Iterable[str]) -> None:
    """Raises SettingsError where --end-user-headers cannot list these."""
    given = tuple(names)
    for name in given:
        if not is_place(HEADER_PLACE + name):
            raise SettingsError(
                "--end-user-headers takes names of headers in lower case, such as "
                f"x-forwarded-user, not {name[:80]!r}"
            )
        if name in _OTHERWISE_USED or is_own(name):
            raise SettingsError(
                f"--end-user-headers {name} has another meaning, and its values would be logged: "
                "list a header that holds end users and nothing else"
            )
    if len(given) > MAX_PLACES:
        raise SettingsError(f"--end-user-headers takes up to {MAX_PLACES} headers")


def value(text: str) -> str:
    """A header's value as a message can hold it. Some adapters have UTF-8 as Latin-1."""
    if text.isascii():
        return text[:MAX_VALUE]
    try:
        return text.encode("latin-1").decode()[:MAX_VALUE]
    except UnicodeError:
        return text.encode("utf-8", "replace").decode()[:MAX_VALUE]
