"""Where "Enforce User IDs" applies: the endpoints, and the one spelling of each path.

A path is judged in its canonical form, and where that form is in scope it is what goes upstream.
So no spelling that an upstream might still understand (`/v1//Chat/%63ompletions/`) slips past.
"""

import re
import unicodedata
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from policyd.model import SAFETY_IDENTIFIER, USER, Endpoint, Target

_WITH_SUCCESSOR = (USER, SAFETY_IDENTIFIER)

ENDPOINTS = {
    "/completions": Endpoint("completion", (USER,)),
    "/chat/completions": Endpoint("chat_completion", _WITH_SUCCESSOR),
    "/images/generations": Endpoint("image_generation", _WITH_SUCCESSOR),
    "/images/edits": Endpoint("image_edit", _WITH_SUCCESSOR, takes_form=True),
    "/images/variations": Endpoint("image_variation", (USER,), takes_form=True),
    "/embeddings": Endpoint("embedding", (USER,)),
    "/responses": Endpoint("response", _WITH_SUCCESSOR),
    "/decisions": Endpoint("decision", (SAFETY_IDENTIFIER,)),
    "/chatkit/sessions": Endpoint("chatkit_session", (USER,)),
}
"""Every endpoint in scope, by its path without the API's prefix."""

# A deployment's name may hold anything, slashes too: rather one path too many in scope than one
# too few.
_PATH = re.compile(
    rf"(?:/v1|/openai/v1|/openai/deployments/.+?|/openai)?({'|'.join(map(re.escape, ENDPOINTS))})",
    re.DOTALL,
)
# A backslash ends a URL's host where it is read as browsers do.
_TARGET = re.compile(r"(?:[a-z][a-z0-9+.-]*://[^/?#\\]*)?([^?#]*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"[/\\]{2,}[^/\\]+")
_OUT_OF_SCOPE = Target(in_scope=False)
_NOT_SAID = Target(in_scope=True)
MAX_PATH = 16 * 1024
"""Characters of a path that are read. What a longer one asks for counts as not said."""
_MAX_CACHED_PATH = 256
# White space and control characters, which many servers drop from the end of a path.
_LOOSE = "".join(
    c for c in map(chr, range(0x3001)) if c.isspace() or unicodedata.category(c) == "Cc"
)


def resolve(method: str, path: str) -> Target:
    """What `method` and `path` ask for. Total: any strings will do.

    `path` is the request target's path as it came, percent-encoded. A query string, or a whole URL,
    is understood too, lest a caller's slip takes a request out of scope. What is not said counts as
    in scope, so an empty method is taken for POST.
    """
    if method and method.strip().upper() != "POST":
        return _OUT_OF_SCOPE
    if not path or len(path) > MAX_PATH:
        return _NOT_SAID
    if len(path) <= _MAX_CACHED_PATH:
        return _resolve_cached(path)
    return _resolve(path)


def canonical_path(path: str) -> str:
    """The one spelling of `path`, percent-encoded again. Doing it twice changes nothing."""
    return _encode(_canonical(path))


def _resolve(target: str) -> Target:
    path = _TARGET.match(target)
    if path and not path[1]:
        # https://host?/v1/embeddings: some take the question mark for a part of the host.
        return _NOT_SAID
    for spelling in _readings(path[1] if path else target):
        canonical = _canonical(spelling)
        match = _PATH.fullmatch(canonical)
        if match is not None:
            return Target(True, ENDPOINTS[match[1]], _encode(canonical))
    return _OUT_OF_SCOPE


def _readings(path: str) -> tuple[str, ...]:
    """How servers may read `path`: some take what follows two slashes for a host."""
    host = _HOST.match(path)
    return (path, path[host.end() :]) if host else (path,)


_resolve_cached = lru_cache(maxsize=4096)(_resolve)


def _canonical(path: str) -> str:
    decoded = unquote_to_bytes(path.encode("utf-8", "surrogatepass"))
    text = decoded.decode("utf-8", "surrogateescape").replace("\\", "/").lower()
    segments: list[str] = []
    for raw in text.split("/"):
        segment = raw.partition(";")[0]
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return "/" + "/".join(_without_loose_end(segments))


def _without_loose_end(segments: list[str]) -> list[str]:
    while segments:
        last = segments.pop().rstrip(_LOOSE)
        if last == "..":
            del segments[-1:]
        elif last not in ("", "."):
            return [*segments, last]
    return segments


def _encode(path: str) -> str:
    return quote(path, safe="/:@!$&'()*+,=~", encoding="utf-8", errors="surrogateescape")
