"""JSON objects: the members that matter, every occurrence of each.

The law: what is read here is what every server reads from the same bytes, or worse. Servers differ
where JSON leaves them room: of a name that stands there twice some take the first value and some
the last, some match names in any letter case, and some read a name's escapes late. So every
occurrence of a member is found, and whoever judges them takes the worst.

A JSON library keeps one value of each name, so it does not suffice; a reader of tokens in Python
does, and takes many times as long. Hence two ways, the cheaper one first:

1. A walk. The library gives every member's raw value, and so its length: from the end of one value
   the walk jumps to the next. Where it comes to the object's end after as many steps as the library
   has names, no name stands there twice, and the library has passed nothing over.
2. A scan, token by token, for objects with a repeated name or with more members than the library
   should build a dictionary of.

The library has checked by then that the body is well-formed, so the patterns below need not. It
does not look into strings that it skips: that the body is UTF-8 is checked before.

The bounds: depth, for the stacks of all readers; strings, members and brackets, for the time and
the memory that both ways take. They are counted on structure alone: what stands in strings, such
as source code, never counts against them.
"""

import re
from itertools import accumulate
from typing import NamedTuple

import msgspec

from policyd.descriptor.content_encoding import UnreadableBody
from policyd.engine.model import UserState

MAX_DEPTH = 500
"""How deep JSON may nest. Python's own parsers stop at about twice this."""
MAX_TOKENS = 500_000
"""How many strings and brackets a body may have where they have to be looked at one by one."""
MAX_WALKED = 100_000
"""How many members, at any depth, a body may have for the library to take it apart, for memory."""
MAX_STRINGS = 1_000_000
"""How many strings any body may have."""


class Member(NamedTuple):
    """A member of an object."""

    name: str
    raw: memoryview
    """Its value, as the JSON that stands in the body."""


class _Object(msgspec.Struct):
    """Any object: the library checks it, and builds nothing."""


_checker = msgspec.json.Decoder(_Object)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string_decoder = msgspec.json.Decoder(str)

_TOKEN = re.compile(
    rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"?+)([ \t\r\n]*+:[ \t\r\n]*+)?+|[\[\]{}]', re.DOTALL
)
_NAME = re.compile(
    rb'[ \t\r\n]*+[{,][ \t\r\n]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL
)
_END = re.compile(rb"[ \t\r\n]*+}")
_SCALAR = re.compile(rb"[^\s,\]}]++")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}:'))
_STEPS = {ord(bracket): step for bracket, step in (("[", 1), ("{", 1), ("]", -1), ("}", -1))}


def members(body: bytes, wanted: frozenset[str]) -> list[Member]:
    """The members of a JSON object whose names, in small letters, are among `wanted`.

    Of a name that stands there several times, each is one. Raises UnreadableBody: NOT_OBJECT,
    NOT_JSON or TOO_COMPLEX.
    """
    try:
        body.decode()  # The checker below does not look into the strings that it skips.
        _checker.decode(body)
    except msgspec.ValidationError:
        raise UnreadableBody(UserState.NOT_OBJECT) from None
    except RecursionError:
        raise UnreadableBody(UserState.TOO_COMPLEX) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnreadableBody(UserState.NOT_JSON) from None
    return _found(body, wanted, _check_complexity(body))


def inner_members(raw: memoryview, wanted: frozenset[str]) -> list[Member]:
    """The same of an object in a body that has been read. Raises UnreadableBody: TOO_COMPLEX."""
    return _found(bytes(raw), wanted, MAX_WALKED)


def string(raw: bytes | memoryview) -> str:
    """The text of a JSON string."""
    return _string_decoder.decode(raw)


# --- the bounds --------------------------------------------------------------------------------


def _check_complexity(body: bytes) -> int:
    """How many members well-formed JSON has at most, at any depth.

    Raises UnreadableBody where it would take too long to look through.
    """
    # To count what stands in strings too is quick, and mostly settles it.
    marks = body.translate(None, _NOT_STRUCTURE)
    members = marks.count(b":")
    brackets = marks.count(b"{") + marks.count(b"[")
    if members <= MAX_WALKED and brackets <= MAX_DEPTH and marks.count(b'"') <= 2 * MAX_STRINGS:
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


# --- the two ways ------------------------------------------------------------------------------


def _found(body: bytes, wanted: frozenset[str], count: int) -> list[Member]:
    found = _walk(body, wanted) if count <= MAX_WALKED else None
    return _scan(body, wanted) if found is None else found


def _walk(body: bytes, wanted: frozenset[str]) -> list[Member] | None:
    """What stands at the top level of well-formed JSON; None where a name stands there twice."""
    found = []
    position = 0
    for name, value in _members_decoder.decode(body).items():
        match = _NAME.match(body, position)
        # Of several members with one name, the library has the last one only.
        if match is None or not body.startswith(value, match.end()):
            return None
        raw = memoryview(value)
        position = match.end() + len(raw)
        if name.casefold() in wanted:
            found.append(Member(name, raw))
    return found if not position or _END.match(body, position) else None


def _scan(body: bytes, wanted: frozenset[str]) -> list[Member]:
    """The same, token by token, repeats kept."""
    view = memoryview(body)
    found = []
    name, start, depth = "", -1, 0
    for count, match in enumerate(_TOKEN.finditer(body)):
        if count > MAX_TOKENS:
            raise UnreadableBody(UserState.TOO_COMPLEX)
        if match[1] is None:
            depth += 1 if match[0] in b"[{" else -1
            if depth == 1 and start >= 0:
                found.append(Member(name, view[start : match.end()]))
                start = -1
        elif depth == 1 and match[2] is not None:
            name = string(match[1])
            if name.casefold() in wanted:
                start = match.end()
                if body[start] not in b"[{":
                    found.append(Member(name, view[start : _end_of_scalar(body, start)]))
                    start = -1
    return found


def _end_of_scalar(body: bytes, start: int) -> int:
    match = _TOKEN.match(body, start) or _SCALAR.match(body, start)
    assert match is not None  # A well-formed member has a value.
    return match.end(1) if body[start] == 0x22 else match.end()
