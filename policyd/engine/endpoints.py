"""Where "Enforce User IDs" applies: the endpoints, and the one spelling of each path.

A path is in scope where it ends in an endpoint, whatever stands before that. It is judged in its
canonical form, and where that form is in scope it is what goes upstream. So no spelling that an
upstream might still understand (`/v1//Chat/%63ompletions/`) slips past. Names that are an
operator's own, such as a deployment's, stay as they came: they decide nothing here.

A path that some server may read as another endpoint all the same, because it decodes twice, say, is
in scope and has no canonical form: it never goes upstream.
"""

import re
from functools import lru_cache

from policyd.engine import paths
from policyd.engine.method_override import is_post
from policyd.engine.model import SAFETY_IDENTIFIER, USER, Endpoint, Target
from policyd.engine.paths import Name

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
    "/chatkit/sessions": Endpoint("chatkit_session", (USER,), takes_model=False),
}
"""Every endpoint in scope, by what its paths end in."""

_Words = tuple[str, ...]


def _words(path: str) -> _Words:
    return tuple(path.strip("/").split("/"))


_BY_WORDS = {_words(path): endpoint for path, endpoint in ENDPOINTS.items()}
# Azure's first API for images, which openai 0.27 asks.
_BY_WORDS["images", "generations:submit"] = ENDPOINTS["/images/generations"]
_LAST_WORDS = frozenset(words[-1] for words in _BY_WORDS)
_LONGEST = max(map(len, _BY_WORDS))

_FIXED = frozenset(
    {
        "api",
        "compatible-mode",
        "deployments",
        "engines",
        "inference",
        "models",
        "openai",
        "v1",
        "v1beta",
    }
)
"""The words before an endpoint that are the API's own, and are written in small letters."""
_NAMING = frozenset({"deployments", "engines"})
"""Those that have a name behind them, which may be any word and may hold slashes."""

# A backslash ends a URL's host where it is read as browsers do.
_TARGET = re.compile(r"(?:[a-z][a-z0-9+.-]*://[^/?#\\]*)?([^?#]*)", re.IGNORECASE | re.DOTALL)
_OUT_OF_SCOPE = Target(in_scope=False)
_UNKNOWN = Target(in_scope=True)
MAX_PATH = 16 * 1024
"""Characters of a path that are read. What a longer one asks for is unknown."""
_MAX_CACHED_PATH = 256


def resolve(method: str, path: str) -> Target:
    """What `method` and `path` ask for. Total: any strings will do.

    `path` is the request target's path as it came, percent-encoded. A query string, or a whole URL,
    is understood too, lest a caller's slip take a request out of scope. What is unknown counts as
    in scope, so an empty method is taken for POST.
    """
    if not is_post(method):
        return _OUT_OF_SCOPE
    if not path or len(path) > MAX_PATH:
        return _UNKNOWN
    if len(path) <= _MAX_CACHED_PATH:
        return _resolve_cached(path)
    return _resolve(path)


def canonical_path(path: str) -> str:
    """The one spelling of `path`, percent-encoded. Doing it twice changes nothing."""
    names = paths.names(paths.in_ascii(path))
    return _written(names, _endpoint(names) or ())


def _resolve(target: str) -> Target:
    match = _TARGET.match(target)
    path = paths.in_ascii(match[1] if match else target)
    if not path:
        # https://host?/v1/embeddings: some take the question mark for a part of the host.
        return _UNKNOWN
    text = paths.last_reading(path)
    if text is not None and not _holds_last_word(paths.unbroken(text)):
        return _OUT_OF_SCOPE  # Most paths, and found so without a closer look.
    names = paths.names(path)
    words = _endpoint(names)
    if words is None:
        return Target(True, is_ambiguous=True) if _may_be_in_scope(text) else _OUT_OF_SCOPE
    endpoint = _BY_WORDS[words]
    canonical = _written(names, words)
    if _may_be_another(canonical, words):
        return Target(True, endpoint, is_ambiguous=True)
    return Target(True, endpoint, canonical)


_resolve_cached = lru_cache(maxsize=4096)(_resolve)


def _holds_last_word(text: str) -> bool:
    folded = text.casefold()
    return any(word in folded for word in _LAST_WORDS)


# --- the canonical form ------------------------------------------------------------------------


def _endpoint(names: list[Name]) -> _Words | None:
    """The words of the endpoint that a path ends in, the longest there is."""
    last = tuple(name.word for name in names[-_LONGEST:])
    tails = (last[start:] for start in range(len(last)))
    return next((tail for tail in tails if tail in _BY_WORDS), None)


def _written(names: list[Name], endpoint: _Words) -> str:
    """A path that ends in `endpoint`: the API's own words in small letters, names as they came."""
    written = []
    was_fixed, in_name = True, False
    for name in names[: len(names) - len(endpoint)]:
        is_fixed = not in_name and name.word in _FIXED
        joint = "/" if was_fixed or is_fixed else name.joint
        written.append(joint + (name.word if is_fixed else name.spelling))
        in_name = in_name or (is_fixed and name.word in _NAMING)
        was_fixed = is_fixed
    return paths.join([*written, *(f"/{word}" for word in endpoint)])


# --- other readings ----------------------------------------------------------------------------


def _may_be_in_scope(text: str | None) -> bool:
    """Whether a server might read an endpoint where the canonical form ends in none.

    `text` is the path's last reading, None where there is no last one.
    """
    if text is None:
        return True
    if paths.is_read_alike(text):
        return _endpoint(paths.names_of_text(text)) is not None
    return _holds_endpoint(text)


def _may_be_another(canonical: str, endpoint: _Words) -> bool:
    """Whether a server might read another endpoint than the one that the canonical form ends in."""
    text = paths.last_reading(canonical)
    if text is None or paths.climbs(text):
        return True
    if not paths.is_read_alike(text) and _holds_endpoint(text, endpoint):
        return True
    return _endpoint(paths.names_of_text(text)) != endpoint


def _holds_endpoint(text: str, end: _Words = ()) -> bool:
    """Whether an endpoint's words stand in a decoded path in their order, others between them.

    `end` is the endpoint that it ends in, which is none of those looked for.
    """
    for reading in {text, paths.unbroken(text)}:
        found = paths.words(reading)
        before = found[: len(found) - len(end)]
        if any(
            _are_in_order(words, before if end[-len(words) :] == words else found)
            for words in _BY_WORDS
        ):
            return True
    return False


def _are_in_order(words: _Words, found: list[str]) -> bool:
    rest = iter(found)
    return all(word in rest for word in words)
