"""The headers that policyd reads: how they name an API key, an override and a trace.

Names are in lower case, and each has all its values: nothing that a client repeats is passed over.
No value is read beyond its bound.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from policyd.engine.states import Credential

KEY_HEADER = "x-usagepanda-api-key"
TRACE_HEADER = "x-usagepanda-trace-id"
PREFIX = "x-usagepanda-"
PARTIAL_BODY = "x-envoy-auth-partial-body"

NO_HEADERS: frozenset[str] = frozenset()

Headers = Mapping[str, Sequence[str]]
"""The values of headers, repeats kept, by their names in lower case."""

# Python takes longer to look up a member of an enumeration than to compare it.
_GIVEN = Credential.GIVEN
# Characters of a value.
_MAX_OVERRIDE = 64
_MAX_KEY = 1024
_TOO_LONG = "too long"
_TRACE_ID = re.compile(r"[0-9A-Za-z_-]{1,99}")


def is_own(name: str) -> bool:
    """Whether the header `name`, in any letter case, is for policyd alone and must not go upstream.
    Some upstreams read an underscore as a dash."""
    return name.lower().replace("_", "-").startswith(PREFIX)


def values(headers: Iterable[tuple[str, str]], name: str) -> tuple[str, ...]:
    """The values of the header `name` (in lower case), repeats kept."""
    return tuple(value for header, value in headers if header.lower() == name)


def by_name(headers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Headers whose names are in lower case, as Headers."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


def pairs(headers: Headers) -> list[tuple[str, str]]:
    """Headers as pairs of name and value."""
    return [(name, value) for name, given in headers.items() for value in given]


def agreed(given: Iterable[str]) -> str | None:
    """The value on which all of them agree: empty if there is none, None if they differ."""
    found = set(given)
    return None if len(found) > 1 else next(iter(found), "")


def content_encoding(given: Iterable[str]) -> str:
    """How a body is compressed, by the values of Content-Encoding: empty if it is not."""
    return ", ".join(given)


def is_coded(given: Iterable[str]) -> bool:
    """Whether a body is compressed, as the values of Content-Encoding say it."""
    return any(one.lower() != "identity" for one in given)


def wants_websocket(headers: Headers) -> bool:
    """Whether a client asks to switch to WebSocket, which no policy can look into."""
    return any("websocket" in value.lower() for value in headers.get("upgrade", ()))


def is_partial(headers: Headers) -> bool:
    """Whether Envoy says that it holds more of the body than it sends to be checked."""
    return bool({value.strip().lower() for value in headers.get(PARTIAL_BODY, ())} - {"false"})


def trace_id(given: str) -> str:
    """The trace ID `given`, or an empty string where it is malformed."""
    return given if _TRACE_ID.fullmatch(given) else ""


def override(given: str) -> str:
    """A value of an override header, or an invalid one where it is longer than any valid one."""
    return given if len(given) <= _MAX_OVERRIDE else _TOO_LONG


def credential(given: Iterable[str]) -> tuple[Credential, str]:
    """How the values of the key header name an API key, and which.

    A value longer than any key becomes a text that is no key.
    """
    keys = {value.strip(" \t") if len(value) <= _MAX_KEY else _TOO_LONG for value in given}
    if len(keys) == 1:
        return _GIVEN, keys.pop()
    return (Credential.CONFLICTING if keys else Credential.MISSING), ""
