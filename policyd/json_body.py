"""JSON bodies: the values of the top-level members that matter here, every repeat of them.

A body is read in one pass by a JSON library. Only one that may name an identifier more than once is
walked token by token; the bounds of structure keep that short, and what stands in strings never
counts against them.
"""

import re
from itertools import accumulate
from typing import NamedTuple

import msgspec

from policyd.content_encoding import UnreadableBody
from policyd.model import SAFETY_IDENTIFIER, USER, UserState

MAX_DEPTH = 500
"""How deep JSON may nest. Python's own parsers stop at about twice this."""
MAX_TOKENS = 500_000
"""How many strings and brackets a body may have where they have to be looked at one by one."""
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
_string_decoder = msgspec.json.Decoder(str)


def _spellings(name: str) -> bytes:
    """A pattern for every way to write `name` in JSON, in any letter case, as some servers read."""
    return b"".join(map(_letter, name))


def _letter(letter: str) -> bytes:
    kinds = [letter, letter.upper(), *("\u017f" if letter == "s" else "")]
    escapes = "|".join(rf"\\u{ord(kind):04x}" for kind in kinds)
    return f"(?:{'|'.join(map(re.escape, kinds))}|{escapes})".encode()


# Every spelling of the two keys, wherever they stand: more than one wants a closer look.
_IDENTIFIER_KEY = re.compile(
    rb'"(?:(%s)|(%s))"[ \t\r\n]*+:' % (_spellings(USER), _spellings(SAFETY_IDENTIFIER)),
    re.IGNORECASE,
)
_TOKEN = re.compile(
    rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")([ \t\r\n]*+:[ \t\r\n]*+)?+|[\[\]{}]', re.DOTALL
)
_SCALAR = re.compile(rb"[^\s,\]}]++")
# What some servers pass over before an object, marks of byte order and UTF-16's zeros too.
_BLANK = b" \t\r\n\x00\xef\xbb\xbf\xfe\xff"
_MAX_BLANK = 1024
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = {ord(bracket): step for bracket, step in (("[", 1), ("{", 1), ("]", -1), ("}", -1))}


def read(body: bytes) -> Members:
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
    _check_complexity(body)
    if _may_repeat(body):
        users, safety_identifiers = _scan(body)
    else:
        users, safety_identifiers = _present(found.user), _present(found.safety_identifier)
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
    seen = [0, 0]
    for match in _IDENTIFIER_KEY.finditer(body):
        which = 0 if match[1] else 1
        if seen[which]:
            return True
        seen[which] = 1
    return False


def _check_complexity(body: bytes) -> None:
    """Raises UnreadableBody where well-formed JSON would take too long to look through."""
    # To count what stands in strings too is quick, and mostly settles it.
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH and body.count(b'"') <= 2 * MAX_TOKENS:
        return
    brackets = _brackets(body)
    if len(brackets) <= 2 * MAX_DEPTH:
        return
    if len(brackets) > 2 * MAX_TOKENS or _depth(brackets) > MAX_DEPTH:
        raise UnreadableBody(UserState.TOO_COMPLEX)


def _brackets(body: bytes) -> bytes:
    """The brackets of well-formed JSON that stand outside its strings."""
    # Without escapes, every quotation mark begins a string or ends one.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    marks = plain.translate(None, _NOT_STRUCTURE)
    if marks.count(b'"') > 2 * MAX_STRINGS:
        raise UnreadableBody(UserState.TOO_COMPLEX)
    return b"".join(marks.split(b'"')[::2])


def _depth(brackets: bytes) -> int:
    return max(accumulate(map(_STEPS.__getitem__, brackets)))


def _scan(body: bytes) -> tuple[list[bytes], list[bytes]]:
    """Every value of the two identifiers at the top level of well-formed JSON.

    Some servers read names in any letter case, so those count too, where the right one is there.
    """
    found: dict[str, list[bytes]] = {USER: [], SAFETY_IDENTIFIER: []}
    exact: set[str] = set()
    depth = 0
    for count, match in enumerate(_TOKEN.finditer(body)):
        if count > MAX_TOKENS:
            raise UnreadableBody(UserState.TOO_COMPLEX)
        if match[1] is None:
            depth += 1 if match[0] in b"[{" else -1
        elif depth == 1 and match[2] is not None:
            name = string(match[1])
            if name.casefold() in found:
                found[name.casefold()].append(_value_at(body, match.end()))
                exact.add(name)
    users, safety_identifiers = (found[name] if name in exact else [] for name in found)
    return users, safety_identifiers


def _value_at(body: bytes, start: int) -> bytes:
    match = _TOKEN.match(body, start) or _SCALAR.match(body, start)
    assert match is not None  # A well-formed member has a value.
    return match[1] if body[start] == 0x22 else match[0]
