"""JSON bodies: their attributes, each of them the worst that some server may read.

Where a member occurs several times, or in another letter case too, every occurrence counts:

- Identifiers: the state is that of the worst one, with the values of all. Other letter cases count
  only beside the right one; alone, they name no end user.
- The model, in any letter case, and that of a session: where two differ, or a server may find none,
  it is CONFLICTING.
- The token limit is the largest, in any letter case; but where a server may find none, because the
  name has another letter case or one of its values is null, it is ABSENT. Choices are the largest.
- The prompt's characters are the sum, in any letter case.
"""

from collections.abc import Iterator

from policyd.descriptor import media_type, prompt, stated
from policyd.descriptor.content_encoding import UnreadableBody, decompress
from policyd.descriptor.identifiers import (
    ABSENT,
    FURTHER_PLACES,
    MAX_VALUE,
    BodyAttributes,
    Identifier,
    from_string,
    together,
)
from policyd.descriptor.json_members import Member, Members, inner_members, members, string
from policyd.engine.places import IDENTIFIERS, SAFETY_IDENTIFIER, USER
from policyd.engine.states import Number, NumberState, UserState

_MODEL = "model"
_TOKENS = ("prompt", "input")
"""The members of a prompt that may hold arrays of tokens."""
_PROMPTS = (*_TOKENS, "messages", "instructions")
_SESSION = "session"
_NESTED = {place: place.split(".") for place in FURTHER_PLACES}
_OUTER = frozenset(outer for outer, _ in _NESTED.values())
_WANTED = _OUTER.union(IDENTIFIERS, [_MODEL, _SESSION], stated.NUMBERS, _PROMPTS)

# Bytes that some servers skip before an object, byte order marks and UTF-16's zeros too.
_BLANK = b" \t\r\n\x00\xef\xbb\xbf\xfe\xff"
_MAX_BLANK = 1024


def read(
    body: bytes, content_type: str, content_encoding: str, limit: int, in_session: bool
) -> BodyAttributes:
    """The attributes of a JSON object. Raises UnreadableBody.

    `in_session` says that its safety_identifier is the one in its object `session`.
    """
    decoded = decompress(body, content_encoding, limit, begins_like_json)
    if not media_type.reads_as_json(content_type, decoded, is_coded=decoded is not body):
        raise UnreadableBody(UserState.NOT_JSON)
    found = members(decoded, _WANTED)
    exact, others = _models(found)
    last = exact[-1] if exact else None
    numbers = {
        name: [(spelling == name, stated.value(bytes(raw))) for spelling, raw in found[name]]
        for name in stated.NUMBERS
        if name in found
    }
    return BodyAttributes(
        _identifier(found, USER),
        _inner_identifier(found, _SESSION, SAFETY_IDENTIFIER)
        if in_session
        else _identifier(found, SAFETY_IDENTIFIER),
        last[:MAX_VALUE] if isinstance(last, str) else "",
        stated.model_state(exact, others),
        stated.token_limit(numbers),
        stated.choices(numbers),
        Number(NumberState.GIVEN, _characters(found)),
        () if _OUTER.isdisjoint(found) else tuple(_others(found)),
    )


def begins_like_json(coded: bytes) -> bool:
    """Whether a server that does not undo a body's coding might read it as a JSON object."""
    begin = coded[:_MAX_BLANK].lstrip(_BLANK)
    return begin[:1] in (b"", b"{") or begin[:2] in (b"//", b"/*")


# --- identifiers -------------------------------------------------------------------------------


def _identifier(found: Members, name: str) -> Identifier:
    # Names in another letter case count only where the right one is there.
    given = _given(found, name)
    return together([_identifier_of(raw, name) for _, raw in given]) if given else ABSENT


def _given(found: Members, name: str) -> list[Member]:
    given = found.get(name, [])
    return given if name in [spelling for spelling, _ in given] else []


def _identifier_of(raw: memoryview, identifier: str) -> Identifier:
    first = chr(raw[0])
    if first == '"':
        return from_string(string(raw), identifier)
    if first in "nf":
        return Identifier(UserState.EMPTY)
    if first in "t[{":
        return Identifier(UserState.NOT_STRING)
    return Identifier(UserState.NOT_STRING if float(bytes(raw)) else UserState.EMPTY)


def _others(found: Members) -> Iterator[tuple[str, Identifier]]:
    """The further places of an end user that a body has."""
    for place, (outer, inner) in _NESTED.items():
        identifier = _inner_identifier(found, outer, inner)
        if identifier != ABSENT:
            yield place, identifier


def _inner_identifier(found: Members, outer: str, inner: str) -> Identifier:
    given = _given(found, outer)
    return together([_inner(raw, inner) for _, raw in given]) if given else ABSENT


def _inner(raw: memoryview, name: str) -> Identifier:
    if raw[0] != ord("{"):
        return ABSENT
    return _identifier(inner_members(raw, frozenset({name})), name)


# --- model, numbers and prompt -----------------------------------------------------------------


def _models(found: Members) -> tuple[list[object], list[object]]:
    """The values of the model's own name, and those of its name in other letter cases."""
    exact: list[object] = []
    others: list[object] = []
    for name, raw in found.get(_SESSION, ()):
        for is_exact, model in session_models(bytes(raw)):
            (exact if is_exact and name == _SESSION else others).append(model)
    for name, raw in found.get(_MODEL, ()):
        (exact if name == _MODEL else others).append(_model(raw))
    return exact, others


def session_models(json: bytes) -> list[tuple[bool, object]]:
    """The models that a session names, each with whether every server finds it.

    Raises UnreadableBody where the session begins like an object and cannot be read.
    """
    if not json.lstrip(_BLANK).startswith(b"{"):
        return []
    found = members(json, frozenset({_MODEL})).get(_MODEL, ())
    return [(name == _MODEL, _model(raw)) for name, raw in found]


def _model(raw: memoryview) -> object:
    if raw[0] == ord('"'):
        return string(raw)
    return None if raw == stated.NULL else stated.NOT_STRING


def _characters(found: Members) -> int:
    return sum(
        [
            prompt.characters(raw, with_tokens=name in _TOKENS)
            for name in _PROMPTS
            if name in found
            for _, raw in found[name]
        ]
    )
