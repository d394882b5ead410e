"""Where policies apply: the endpoints, and the one spelling of each path.

A path is in scope where it ends in an endpoint, whatever stands before that. It is judged in its
canonical form, and where that form is in scope it is what goes upstream. So no spelling that an
upstream might still understand (`/v1//Chat/%63ompletions/`) slips past. Names that are an
operator's own, such as a deployment's, stay as they came: they decide nothing here.

A path that some server may still read as another endpoint, because it decodes twice, say, is in
scope and has no canonical form: it never goes upstream.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from policyd.engine import paths
from policyd.engine.method_override import is_post
from policyd.engine.paths import Name
from policyd.engine.places import (
    END_USER_ID,
    METADATA_USER_ID,
    SAFETY_IDENTIFIER,
    USER,
    Endpoint,
    Target,
)

_WITH_SUCCESSOR = (USER, SAFETY_IDENTIFIER)


def _realtime(operation: str, *, takes_model: bool = False) -> Endpoint:
    return Endpoint(operation, (SAFETY_IDENTIFIER,), takes_model=takes_model, safety_header=True)


def _live(operation: str) -> Endpoint:
    return _realtime(operation)._replace(safety_in_session=True)


ENDPOINTS = {
    "/completions": Endpoint("completion", (USER,)),
    "/chat/completions": Endpoint("chat_completion", (*_WITH_SUCCESSOR, END_USER_ID)),
    "/images/generations": Endpoint("image_generation", _WITH_SUCCESSOR),
    "/images/edits": Endpoint("image_edit", _WITH_SUCCESSOR, takes_form=True),
    "/images/variations": Endpoint("image_variation", (USER,), takes_form=True),
    "/embeddings": Endpoint("embedding", (USER,)),
    "/responses": Endpoint("response", _WITH_SUCCESSOR),
    "/decisions": Endpoint("decision", (SAFETY_IDENTIFIER,)),
    "/chatkit/sessions": Endpoint("chatkit_session", (USER,), takes_model=False),
    "/realtime/client_secrets": _realtime("realtime_client_secret"),
    "/realtime/calls": _realtime("realtime_call")._replace(takes_form=True, takes_sdp=True),
    "/realtime/sessions": _realtime("realtime_session", takes_model=True),
    "/realtime/transcription_sessions": _realtime("realtime_transcription_session"),
    "/realtime/translations/client_secrets": _realtime("realtime_translation_client_secret"),
    "/live/sessions": _live("live_session"),
    "/live/sessions/{session_id}/accept": _live("live_accept"),
    # Anthropic's. It is out of scope for keys that are for OpenAI's API alone.
    "/v1/messages": Endpoint("message", (METADATA_USER_ID,), only_for=METADATA_USER_ID),
}
"""Every endpoint in scope, by what its paths end in; Azure's older path of one follows below.

A word in braces, at most one and never the last, stands for any one word.
"""


def without_place(accept: Iterable[str]) -> tuple[str, ...]:
    """The operations whose endpoints have none of the places that a key accepts.

    There `user` counts instead, or nothing does where the endpoint has no `user`.
    """
    accepted = tuple(accept)
    return tuple(
        one.operation
        for one in ENDPOINTS.values()
        if one.is_for(accepted) and not one.places(accepted)
    )


_Words = tuple[str, ...]
_ANY = "{}"
"""Any one word, whatever ENDPOINTS calls it between its braces."""


def _words(path: str) -> _Words:
    words = path.strip("/").split("/")
    return tuple(_ANY if word.startswith("{") else word for word in words)


_BY_WORDS = {_words(path): endpoint for path, endpoint in ENDPOINTS.items()}
# Azure's first API for images, which openai 0.27 asks.
_BY_WORDS["images", "generations:submit"] = ENDPOINTS["/images/generations"]
_FOR_ALL = frozenset(words for words, endpoint in _BY_WORDS.items() if not endpoint.only_for)
"""The endpoints that are in scope whatever the key accepts."""
_WITH_NAME = tuple(words for words in _BY_WORDS if _ANY in words)
"""The endpoints with a name among their words."""
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
"""Those that are followed by a name, which may be any word and may hold slashes."""

# A backslash ends a URL's host where it is read as browsers do.
_TARGET = re.compile(r"(?:[a-z][a-z0-9+.-]*://[^/?#\\]*)?([^?#]*)", re.IGNORECASE | re.DOTALL)
_OUT_OF_SCOPE = Target(in_scope=False)
_UNKNOWN = Target(in_scope=True)
MAX_PATH = 16 * 1024
"""Characters of a path that is read. What a longer one asks for is unknown."""
_MAX_CACHED_PATH = 256
"""Characters of a path up to which what it asks for is cached."""
MAX_MODEL = 256
"""Characters of a model in a path that count. No deployment's name is as long."""


def resolve(method: str, path: str) -> Target:
    """What `method` and `path` ask for. Total: any strings will do.

    `path` is the request target's path as it came, percent-encoded. A query string, or a whole URL,
    is understood too, lest a caller's slip take a request out of scope. What is unknown counts as
    in scope, so an empty method is taken for POST.
    """
    if method != "POST" and not is_post(method):
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
        # https://host?/v1/embeddings: some servers take the question mark for a part of the host.
        return _UNKNOWN
    text = paths.last_reading(path)
    if text is not None and not _holds_last_word(paths.unbroken(text)):
        return _OUT_OF_SCOPE  # Most paths, which need no closer look.
    names = paths.names(path)
    words = _endpoint(names)
    # The gateway forwards a path that is out of scope for some keys unchanged. No upstream may read
    # it as an endpoint that is in scope.
    if words not in _FOR_ALL and _may_be_in_scope(path, text, _FOR_ALL):
        return Target(True, is_ambiguous=True)
    if words is None:
        return _for_some(path, text)
    endpoint = _BY_WORDS[words]
    canonical = _written(names, words)
    naming = _naming(names[: len(names) - len(words)])
    found = Target(
        True,
        endpoint,
        canonical,
        model=paths.spoken(naming)[:MAX_MODEL],
        has_unclear_model=_is_unclear(naming),
    )
    if _may_be_another(canonical, words):
        return found._replace(path="", is_ambiguous=True)
    return found


def _for_some(path: str, text: str | None) -> Target:
    """What a path asks for that can be an endpoint only for some keys, as only some servers read
    it."""
    some = (words for words in _BY_WORDS if words not in _FOR_ALL)
    found = next((words for words in some if _may_be_in_scope(path, text, {words})), None)
    return Target(True, _BY_WORDS[found], is_ambiguous=True) if found else _OUT_OF_SCOPE


_resolve_cached = lru_cache(maxsize=4096)(_resolve)


def _holds_last_word(text: str) -> bool:
    folded = text.casefold()
    return any(word in folded for word in _LAST_WORDS)


# --- the canonical form ------------------------------------------------------------------------


def _endpoint(names: list[Name]) -> _Words | None:
    """The words of the longest endpoint that a path ends in."""
    last = tuple(name.word for name in names[-_LONGEST:])
    tails = (last[start:] for start in range(len(last)))
    return next(filter(None, map(_known, tails)), None)


def _known(tail: _Words) -> _Words | None:
    """The words of the endpoint that `tail` is."""
    if tail in _BY_WORDS:
        return tail
    return next((words for words in _WITH_NAME if _fits(tail, words)), None)


def _fits(tail: _Words, words: _Words) -> bool:
    return len(tail) == len(words) and all(
        word in (_ANY, given) for word, given in zip(words, tail, strict=True)
    )


def _written(names: list[Name], endpoint: _Words) -> str:
    """A path that ends in `endpoint`: the API's own words in small letters, names as they came."""
    written = []
    was_fixed, in_name = True, False
    before = len(names) - len(endpoint)
    for name in names[:before]:
        is_fixed = not in_name and name.word in _FIXED
        joint = "/" if was_fixed or is_fixed else name.joint
        written.append(joint + (name.word if is_fixed else name.spelling))
        in_name = in_name or (is_fixed and name.word in _NAMING)
        was_fixed = is_fixed
    for word, name in zip(endpoint, names[before:], strict=True):
        written.append("/" + (name.spelling if word == _ANY else word))
    return paths.join(written)


def _naming(before: list[Name]) -> list[Name]:
    """Of the names before an endpoint, those that name a model, deployment or engine.

    Azure puts the word `extensions` between a deployment's name and the endpoint.
    """
    words = [name.word for name in before]
    start = next((at for at, word in enumerate(words, 1) if word in _NAMING), len(words))
    end = len(words)
    while end > start + 1 and (words[end - 1] in _FIXED or words[end - 1] == "extensions"):
        end -= 1
    return before[start:end]


def _is_unclear(naming: list[Name]) -> bool:
    """Whether a server may find another model in a path, or a longer name than counts here."""
    if not naming:
        return False
    text = paths.spoken(naming)
    return (
        len(text) > MAX_MODEL
        or not paths.is_read_once(naming)
        or any(name.word in _NAMING for name in naming)
    )


# --- other readings ----------------------------------------------------------------------------


def _may_be_in_scope(path: str, text: str | None, among: Collection[_Words]) -> bool:
    """Whether a server might read one of the endpoints `among` where the canonical form has none.

    `text` is the last reading of `path`, None where there is no last one.
    """
    if text is None:
        return True
    if not paths.is_read_alike(text):
        return _holds_endpoint(text, among)
    names = paths.names_of_text(text)
    if _endpoint(names) in among:
        return True
    return paths.hides_slashes(path, text) and _ends_around_slashes(names, among)


def _ends_around_slashes(names: list[Name], among: Collection[_Words]) -> bool:
    """Whether a path ends in an endpoint whose name holds slashes, as a server may read it that
    splits the path before decoding.
    """
    found = [name.word for name in names]
    for words in among:
        if _ANY in words:
            at = words.index(_ANY)
            end = len(found) - len(words[at + 1 :])
            starts = range(end - at)
            if tuple(found[end:]) == words[at + 1 :] and any(
                tuple(found[start : start + at]) == words[:at] for start in starts
            ):
                return True
    return False


def _may_be_another(canonical: str, endpoint: _Words) -> bool:
    """Whether a server might read another endpoint than the one that the canonical form ends in."""
    text = paths.last_reading(canonical)
    if text is None or paths.climbs(text):
        return True
    if not paths.is_read_alike(text) and _holds_endpoint(text, _BY_WORDS, endpoint):
        return True
    return _endpoint(paths.names_of_text(text)) != endpoint


def _holds_endpoint(text: str, among: Collection[_Words], end: _Words = ()) -> bool:
    """Whether an endpoint's words occur in a decoded path in their order, with or without others
    between them.

    `end` is the endpoint that the path ends in, which is not looked for.
    """
    for reading in {text, paths.unbroken(text)}:
        found = paths.words(reading)
        before = found[: len(found) - len(end)]
        is_plain = _fits(tuple(found[len(before) :]), end)
        for words in among:
            # An endpoint whose words are within `end` does not count there, unless some server may
            # end the path within `end`.
            is_own = is_plain and _are_in_order(words, end)
            if _are_in_order(words, before if is_own else found):
                return True
    return False


def _are_in_order(words: _Words, found: Sequence[str]) -> bool:
    rest = iter(found)
    return all(word in rest for word in words if word != _ANY)
