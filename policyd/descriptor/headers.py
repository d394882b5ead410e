"""The headers that policyd reads: how they name an API key, an override and a trace.

Names come in lower case, and each with all its values, as what a client repeats is never passed
over. No value is read further than its bound.
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

# A member of an enumeration takes Python longer to find than to compare.
_GIVEN = Credential.GIVEN
_MAX_OVERRIDE = 64
_MAX_KEY = 1024
_TOO_LONG = "too long"
_TRACE_ID = re.compile(r"[0-9A-Za-z_-]{1,99}")


def is_own(name: str) -> bool:
    """Whether it is for policyd alone, so that it must not go upstream, in any letter case. An
    underscore is a dash to some upstreams."""
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
    """The value that all of them are: empty if there is none, None if they differ."""
    found = set(given)
    return None if len(found) > 1 else next(iter(found), "")


def content_encoding(given: Iterable[str]) -> str:
    """How a body is compressed, as the values of Content-Encoding say it: empty if it is not."""
    return ", ".join(given)


def is_coded(given: Iterable[str]) -> bool:
    """Whether a body is compressed, as the values of Content-Encoding say it."""
    return any(one.lower() != "identity" for one in given)


def wants_websocket(headers: Headers) -> bool:
    """Whether a client asks to speak WebSocket, which no policy can see into, from here on."""
    return any("websocket" in value.lower() for value in headers.get("upgrade", ()))


def is_partial(headers: Headers) -> bool:
    """Whether Envoy says that it holds more of the body than it sends to be checked."""
    return bool({value.strip().lower() for value in headers.get(PARTIAL_BODY, ())} - {"false"})


def trace_id(given: str) -> str:
    """The trace ID `given`, empty where it has not the right form."""
    return given if _TRACE_ID.fullmatch(given) else ""


def override(given: str) -> str:
    """A value of an override header, cut where it is longer than any valid one."""
    return given if len(given) <= _MAX_OVERRIDE else _TOO_LONG


def credential(given: Iterable[str]) -> tuple[Credential, str]:
    """How the values of the key header name an API key, and which.

    One longer than any key is cut to a text that is none.
    """
    keys = {value.strip(" \t") if len(value) <= _MAX_KEY else _TOO_LONG for value in given}
    if len(keys) == 1:
        return _GIVEN, keys.pop()
    return (Credential.CONFLICTING if keys else Credential.MISSING), ""
