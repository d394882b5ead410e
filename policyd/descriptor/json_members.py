"""JSON objects: the members that matter, every occurrence of each.

The law: what is read here is what every server reads from the same bytes, or worse. Servers differ
where JSON leaves them room: where a name occurs twice, some take the first value and some the last;
some match names in any letter case, and some undo a name's escapes late. So every occurrence of a
member is found, and the reader of a member takes the worst.

A JSON library keeps one value of each name, so it does not suffice; a token reader in Python does,
and takes many times as long. Hence three ways, the cheapest that is certain first:

1. A glance, for small bodies. The library has one value of each name, and every member has a colon.
   If the body has no more colons than these members, the library has passed nothing over.
2. A walk. The library gives every member's raw value, and so its length: from the end of one value
   the walk jumps to the next. Where it comes to the object's end after as many steps as the library
   has names, no name occurs twice, and the library has passed nothing over.
3. A scan, token by token, for objects with a repeated name or with more members than the library
   should build a dictionary of.

The library has checked by then that the body is well-formed, so the patterns below need not. It
does not look into strings that it skips, so UTF-8 is checked before.

The bounds: depth, for the stacks of all readers; strings, members and brackets, for the time and
the memory that all ways take. They are counted on structure alone: what stands in strings, such
as source code, never counts against them.
"""

import re
from codecs import getincrementaldecoder
from itertools import accumulate

import msgspec

from policyd.descriptor.content_encoding import UnreadableBody
from policyd.engine.states import UserState

MAX_DEPTH = 500
"""How deep JSON may nest. Python's own parsers stop at about twice this."""
MAX_TOKENS = 500_000
"""How many strings and brackets a body may have where they have to be looked at one by one."""
MAX_WALKED = 100_000
"""How many members, at any depth, a body may have for the library to take it apart, for memory."""
MAX_STRINGS = 1_000_000
"""How many strings any body may have."""
_WITHIN_BOUNDS = 2 * MAX_DEPTH
"""A body of up to this many bytes cannot exceed any of these."""
_PIECE = 2**20
"""Bytes that are decoded at once."""
_AT_A_GLANCE = 8 * 1024
"""Bytes of a body up to which counting colons is quicker than walking."""


Member = tuple[str, memoryview]
"""A member of an object: its name, and its value as the JSON that stands in the body."""
Members = dict[str, list[Member]]
"""Members by their names in small letters."""


class _Object(msgspec.Struct):
    """Any object: the library checks it, and builds nothing."""


_Utf8 = getincrementaldecoder("utf-8")
_Values = dict[str, msgspec.Raw]
_checker = msgspec.json.Decoder(_Object)
_members_decoder = msgspec.json.Decoder(_Values)
_string_decoder = msgspec.json.Decoder(str)

_TOKEN = re.compile(
    rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"?+)([ \t\r\n]*+:[ \t\r\n]*+)?+|[\[\]{}]', re.DOTALL
)
_NAME = re.compile(
    rb'[ \t\r\n]*+[{,][ \t\r\n]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL
)
_END = re.compile(rb"[ \t\r\n]*+}")
_ESCAPED_MARK = re.compile(rb'\\["\\]')
_SCALAR = re.compile(rb"[^\s,\]}]++")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}:'))
_NOT_ESCAPES = bytes(set(_NOT_STRUCTURE) - set(rb"\/bfnrtu"))
_STEPS = {ord(bracket): step for bracket, step in (("[", 1), ("{", 1), ("]", -1), ("}", -1))}


def members(body: bytes, wanted: frozenset[str]) -> Members:
    """The members of a JSON object whose names, in small letters, are among `wanted`.

    Every occurrence of a repeated name is a member. Raises UnreadableBody: NOT_OBJECT, NOT_JSON or
    TOO_COMPLEX.
    """
    values = _values(body)
    if values is None:
        return _scan(body, wanted)
    found: Members = {}
    for name, value in values.items():
        small = name.casefold()
        if small in wanted:
            found.setdefault(small, []).append((name, memoryview(value)))
    return found


def _values(body: bytes) -> _Values | None:
    """Every member's value by its name; None where the library may have passed one over, or there
    are too many."""
    marks = body.translate(None, _NOT_STRUCTURE) if len(body) > _WITHIN_BOUNDS else b""
    is_small = marks.count(b":") <= MAX_WALKED
    decoded = _decode(body, _members_decoder if is_small else _checker)
    if _check_complexity(body, marks) > MAX_WALKED:
        return None
    values = decoded if isinstance(decoded, dict) else _members_decoder.decode(body)
    is_whole = _is_whole if len(body) <= _AT_A_GLANCE else _walk
    return values if is_whole(body, values) else None


def _decode(
    body: bytes, decoder: msgspec.json.Decoder[_Values] | msgspec.json.Decoder[_Object]
) -> _Values | _Object:
    try:
        _check_utf8(body)  # The decoder does not look into the strings that it skips.
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise UnreadableBody(UserState.NOT_OBJECT) from None
    except RecursionError:
        raise UnreadableBody(UserState.TOO_COMPLEX) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnreadableBody(UserState.NOT_JSON) from None


def _check_utf8(body: bytes) -> None:
    if body.isascii():
        return
    # In pieces, as one text of it all may take four times its bytes.
    decoder = _Utf8()
    for begin in range(0, len(body), _PIECE):
        decoder.decode(body[begin : begin + _PIECE])
    decoder.decode(b"", final=True)


def inner_members(raw: memoryview, wanted: frozenset[str]) -> Members:
    """The same of an object in a body that has been read. Raises UnreadableBody: TOO_COMPLEX."""
    return members(bytes(raw), wanted)


def string(raw: bytes | memoryview) -> str:
    """The text of a JSON string."""
    return _string_decoder.decode(raw)


# --- the bounds --------------------------------------------------------------------------------


def _check_complexity(body: bytes, marks: bytes) -> int:
    """How many members well-formed JSON has at most, at any depth, by the `marks` in it.

    Raises UnreadableBody where it would take too long to look through.
    """
    # Counting marks inside strings, too, is quick, and mostly settles it.
    members = marks.count(b":")
    brackets = marks.count(b"{") + marks.count(b"[")
    if members <= MAX_WALKED and brackets <= MAX_DEPTH and marks.count(b'"') <= 2 * MAX_STRINGS:
        return members
    # Looking for escaped marks is quicker than taking them out.
    has_escaped = b"\\" in body and _ESCAPED_MARK.search(body)
    structure = _structure(_plain_marks(body) if has_escaped else marks)
    _check_brackets(structure.replace(b":", b""))
    return structure.count(b":")


def _plain_marks(body: bytes) -> bytes:
    """The marks in a body without escaped ones: each quotation mark that is left begins or ends a
    string."""
    # Escapes stay whole, each a backslash and the character behind it.
    marks = body.translate(None, _NOT_ESCAPES)
    return marks.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_STRUCTURE)


def _structure(marks: bytes) -> bytes:
    """The brackets and colons that stand outside strings."""
    if marks.count(b'"') > 2 * MAX_STRINGS:
        raise UnreadableBody(UserState.TOO_COMPLEX)
    # Most strings hold no mark, so that their two quotation marks are adjacent. Without such pairs,
    # what lies between the others is inside a string, or outside, as before.
    return b"".join(marks.replace(b'""', b"").split(b'"')[::2])


def _check_brackets(brackets: bytes) -> None:
    if len(brackets) <= 2 * MAX_DEPTH:
        return
    if len(brackets) > 2 * MAX_TOKENS:
        raise UnreadableBody(UserState.TOO_COMPLEX)
    # Each removal of the innermost pairs takes away a level for each kind at most, and mostly much.
    outer, levels = brackets, 0
    while outer and len(outer) > 2 * (MAX_DEPTH - levels):
        inner, outer = outer, outer.replace(b"{}", b"").replace(b"[]", b"")
        levels += 2
        if 2 * len(outer) > len(inner):
            break
    if len(outer) > 2 * (MAX_DEPTH - levels) and _depth(brackets) > MAX_DEPTH:
        raise UnreadableBody(UserState.TOO_COMPLEX)


def _depth(brackets: bytes) -> int:
    return max(accumulate(map(_STEPS.__getitem__, brackets)))


# --- the three ways ----------------------------------------------------------------------------


def _is_whole(body: bytes, values: _Values) -> bool:
    """Whether well-formed JSON certainly holds no member besides these."""
    # Every member has a colon of its own, and a name may hold more: then the scan settles it.
    colons = len(values) + b"".join(values.values()).count(b":")
    return body.count(b":") == colons


def _walk(body: bytes, values: _Values) -> bool:
    """The same as _is_whole(), from value to value."""
    position = 0
    for value in values.values():
        match = _NAME.match(body, position)
        # Where several members have one name, the library has only the last one's value.
        if match is None or not body.startswith(value, match.end()):
            return False
        position = match.end() + len(memoryview(value))
    return not values or _END.match(body, position) is not None


def _scan(body: bytes, wanted: frozenset[str]) -> Members:
    """The members, token by token, repeats kept."""
    found: Members = {}
    name, start, depth = "", -1, 0
    for count, match in enumerate(_TOKEN.finditer(body), 1):
        if count > MAX_TOKENS:
            raise UnreadableBody(UserState.TOO_COMPLEX)
        if match[1] is None:
            depth += 1 if match[0] in b"[{" else -1
            if depth == 1 and start >= 0:
                _add(found, name, memoryview(body)[start : match.end()])
                start = -1
        elif depth == 1 and match[2] is not None:
            name = string(match[1])
            if name.casefold() in wanted:
                start = match.end()
                if body[start] not in b"[{":
                    _add(found, name, memoryview(body)[start : _end_of_scalar(body, start)])
                    start = -1
    return found


def _add(found: Members, name: str, value: memoryview) -> None:
    found.setdefault(name.casefold(), []).append((name, value))


def _end_of_scalar(body: bytes, start: int) -> int:
    match = _TOKEN.match(body, start) or _SCALAR.match(body, start)
    assert match is not None  # A well-formed member has a value.
    return match.end()
