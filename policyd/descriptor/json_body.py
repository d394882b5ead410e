"""JSON bodies: the values of the top-level members that matter here, every repeat of them.

The law: what counts as a user here is one to every server that reads the same bytes. Servers differ
where JSON leaves them room: of a name that stands there twice some take the first value and some
the last, some match names in any letter case, and some read a name's escapes late. So every
occurrence of an identifier is found, and the worst of them counts.

A JSON library keeps one value of each name, so it does not suffice; a reader of tokens in Python
does, and takes many times as long. Hence three ways, the cheapest that is certain first:

1. A glance, for small bodies. The library decodes the body; if the text of an identifier's name
   stands there at most once, and nothing in which another spelling of it could hide, the library
   has passed nothing over.
2. A walk. The library gives every member's raw value, and so its length: from the end of one value
   the walk jumps to the next name. It sees each name at the top level, and ends where a name comes
   twice, as the library has the last of its values only.
3. A scan, token by token, for bodies with a repeated name or with more members than the library
   should build a dictionary of.

The library has checked by then that the body is well-formed, so the patterns below need not. It
does not look into strings that it skips: that the body is UTF-8 is checked before.

The bounds: depth, for the stacks of all readers; strings, members and brackets, for the time and
the memory that ways 2 and 3 take. They are counted on structure alone: what stands in strings, such
as source code, never counts against them.
"""

import re
from itertools import accumulate
from typing import NamedTuple

import msgspec

from policyd.descriptor import media_type
from policyd.descriptor.content_encoding import UnreadableBody, decompress
from policyd.descriptor.identifiers import (
    ABSENT,
    MAX_VALUE,
    BodyAttributes,
    Identifier,
    from_string,
)
from policyd.engine.model import IDENTIFIERS, SAFETY_IDENTIFIER, USER, UserState

MAX_DEPTH = 500
"""How deep JSON may nest. Python's own parsers stop at about twice this."""
MAX_TOKENS = 500_000
"""How many strings and brackets a body may have where they have to be looked at one by one."""
MAX_WALKED = 100_000
"""How many members, at any depth, a body may have for the library to take it apart, for memory."""
MAX_STRINGS = 1_000_000
"""How many strings any body may have."""


class Members(NamedTuple):
    """The members of an object that matter, each as the JSON that stands in the body."""

    user: list[bytes]
    safety_identifier: list[bytes]
    model: bytes
    """Of several, the last; empty if there is none."""


class _Body(msgspec.Struct):
    user: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    safety_identifier: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decoder = msgspec.json.Decoder(_Body)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string_decoder = msgspec.json.Decoder(str)

_AT_A_GLANCE = 8 * 1024
"""Bytes of body up to which a search for names beats the walk."""
_KEY = re.compile(rb'"(?:user|safety_identifier)"[ \t\r\n]*+:', re.IGNORECASE)
# How a letter of those names can be escaped, and a letter that some servers take for an s.
_OTHER_LETTERS = (b"\\u00", b"\\u01", b"\xc5\xbf")
_TOKEN = re.compile(
    rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"?+)([ \t\r\n]*+:[ \t\r\n]*+)?+|[\[\]{}]', re.DOTALL
)
_NAME = re.compile(
    rb'[{,][ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL
)
_BLANKS = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^\s,\]}]++")
# What some servers pass over before an object, marks of byte order and UTF-16's zeros too.
_BLANK = b" \t\r\n\x00\xef\xbb\xbf\xfe\xff"
_MAX_BLANK = 1024
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}:'))
_STEPS = {ord(bracket): step for bracket, step in (("[", 1), ("{", 1), ("]", -1), ("}", -1))}


def read(body: bytes, content_type: str, content_encoding: str, limit: int) -> BodyAttributes:
    """The attributes of a JSON object. Raises UnreadableBody."""
    decoded = decompress(body, content_encoding, limit, begins_like_json)
    if not media_type.reads_as_json(content_type, decoded, is_coded=decoded is not body):
        raise UnreadableBody(UserState.NOT_JSON)
    found = members(decoded)
    return BodyAttributes(
        _identifier(found.user, USER),
        _identifier(found.safety_identifier, SAFETY_IDENTIFIER),
        string(found.model)[:MAX_VALUE] if found.model.startswith(b'"') else "",
    )


def _identifier(raws: list[bytes], identifier: str) -> Identifier:
    if not raws:
        return ABSENT
    found = [_identifier_of(raw, identifier) for raw in raws]
    return max(found, key=lambda one: one.state)


def _identifier_of(raw: bytes, identifier: str) -> Identifier:
    first = raw[:1]
    if first == b'"':
        return from_string(string(raw), identifier)
    if first in (b"n", b"f"):
        return Identifier(UserState.EMPTY)
    if first in (b"t", b"[", b"{"):
        return Identifier(UserState.NOT_STRING)
    return Identifier(UserState.NOT_STRING if float(raw) else UserState.EMPTY)


def members(body: bytes) -> Members:
    """The members of a JSON object. Raises UnreadableBody."""
    try:
        body.decode()  # The decoder below does not look into the strings that it skips.
        found = _decoder.decode(body)
    except msgspec.ValidationError:
        raise UnreadableBody(UserState.NOT_OBJECT) from None
    except RecursionError:
        raise UnreadableBody(UserState.TOO_COMPLEX) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnreadableBody(UserState.NOT_JSON) from None
    count = _check_complexity(body)
    if len(body) <= _AT_A_GLANCE and not _may_repeat(body):
        users, safety_identifiers = _present(found.user), _present(found.safety_identifier)
    else:
        users, safety_identifiers = _identifiers(body, count)
    return Members(users, safety_identifiers, b"".join(_present(found.model)))


def begins_like_json(coded: bytes) -> bool:
    """Whether a server that does not undo a body's coding might read it as a JSON object."""
    begin = coded[:_MAX_BLANK].lstrip(_BLANK)
    return begin[:1] in (b"", b"{") or begin[:2] in (b"//", b"/*")


def string(raw: bytes) -> str:
    """The text of a JSON string."""
    return _string_decoder.decode(raw)


def _present(raw: msgspec.Raw | msgspec.UnsetType) -> list[bytes]:
    return [] if raw is msgspec.UNSET else [bytes(raw)]


def _may_repeat(body: bytes) -> bool:
    """Whether some member might be an identifier besides the one that has its very name."""
    return len(_KEY.findall(body)) > 1 or any(letter in body for letter in _OTHER_LETTERS)


def _check_complexity(body: bytes) -> int:
    """How many members well-formed JSON has at most, at any depth.

    Raises UnreadableBody where it would take too long to look through.
    """
    # To count what stands in strings too is quick, and mostly settles it.
    members = body.count(b":")
    brackets = body.count(b"{") + body.count(b"[")
    if members <= MAX_WALKED and brackets <= MAX_DEPTH and body.count(b'"') <= 2 * MAX_STRINGS:
        return members
    structure = _structure(body)
    members = structure.count(b":")
    _check_brackets(structure.replace(b":", b""))
    return members


def _structure(body: bytes) -> bytes:
    """The brackets and colons of well-formed JSON that stand outside its strings."""
    # Without escapes, every quotation mark begins a string or ends one.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    marks = plain.translate(None, _NOT_STRUCTURE)
    if marks.count(b'"') > 2 * MAX_STRINGS:
        raise UnreadableBody(UserState.TOO_COMPLEX)
    return b"".join(marks.split(b'"')[::2])


def _check_brackets(brackets: bytes) -> None:
    if len(brackets) <= 2 * MAX_DEPTH:
        return
    if len(brackets) > 2 * MAX_TOKENS or _depth(brackets) > MAX_DEPTH:
        raise UnreadableBody(UserState.TOO_COMPLEX)


def _depth(brackets: bytes) -> int:
    return max(accumulate(map(_STEPS.__getitem__, brackets)))


def _identifiers(body: bytes, members: int) -> tuple[list[bytes], list[bytes]]:
    """Every value of the two identifiers at the top level of well-formed JSON.

    Some servers read names in any letter case, so those count too, where the right one is there.
    """
    found = _walk(body) if members <= MAX_WALKED else None
    if found is None:
        found = _scan(body)
    names = {name for name, _ in found}
    users, safety_identifiers = (
        [raw for name, raw in found if name.casefold() == identifier] if identifier in names else []
        for identifier in (USER, SAFETY_IDENTIFIER)
    )
    return users, safety_identifiers


_Found = list[tuple[str, bytes]]
"""Names at the top level that may be an identifier's, and the JSON of their values."""


def _walk(body: bytes) -> _Found | None:
    """What stands at the top level; None where a name stands there twice."""
    members = _members_decoder.decode(body)
    found = []
    position = body.index(b"{")
    while members:
        match = _NAME.match(body, position)
        if match is None:
            return None
        name = string(match[1])
        raw = members.pop(name, None)
        # Of several members with one name, the library has the last one only.
        if raw is None or not body.startswith(raw, match.end()):
            return None
        if name.casefold() in IDENTIFIERS:
            found.append((name, bytes(raw)))
        position = _past_blanks(body, match.end() + len(memoryview(raw)))
    is_complete = body[position : position + 1] == b"}"
    return found if is_complete else None


def _past_blanks(body: bytes, position: int) -> int:
    match = _BLANKS.match(body, position)
    assert match is not None  # It may be empty.
    return match.end()


def _scan(body: bytes) -> _Found:
    """The same, token by token, repeats kept."""
    found = []
    depth = 0
    for count, match in enumerate(_TOKEN.finditer(body), 1):
        if count > MAX_TOKENS:
            raise UnreadableBody(UserState.TOO_COMPLEX)
        if match[1] is None:
            depth += 1 if match[0] in b"[{" else -1
        elif depth == 1 and match[2] is not None:
            name = string(match[1])
            if name.casefold() in IDENTIFIERS:
                found.append((name, _value_at(body, match.end())))
    return found


def _value_at(body: bytes, start: int) -> bytes:
    match = _TOKEN.match(body, start) or _SCALAR.match(body, start)
    assert match is not None  # A well-formed member has a value.
    return match[1] if body[start] == 0x22 else match[0]
