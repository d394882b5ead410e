"""A request's path as servers may read it: split into names, dot segments resolved, decoded.

Servers differ over encoded slashes, backslashes, `;parameters`, dot segments and what is encoded
twice. `names()` is the reading that policyd goes by; `last_reading()` and `words()` serve to find
out whether a server could come to another one.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

MAX_DECODINGS = 8
"""How often a path is decoded. One that still changes then is not read further."""
# White space and control characters, which many servers drop from the end of a path. To JavaScript
# the byte order mark is white space, too.
_LOOSE = "\ufeff" + "".join(
    c for c in map(chr, range(0x3001)) if c.isspace() or unicodedata.category(c) == "Cc"
)
_NO_BREAKS = str.maketrans("", "", "\t\r\n")
_ASCII = "".join(map(chr, range(0x80)))
_SEPARATOR = re.compile(r"([/\\]|%2f|%5c)", re.IGNORECASE)
_PLAIN_SEPARATOR = re.compile(r"([/\\])")
# What ends a name, or the path, for one server or another: a NUL in C, a space in a request line.
_END = r";?#\s\x00-\x1f\x7f-\x9f"
_BREAK = re.compile(rf"[/\\{_END}]")
_ENDS_EARLY = re.compile(f"[{_END}]")


class Name(NamedTuple):
    """What stands between two slashes of a path."""

    word: str
    """Decoded, without `;parameters`, letter case folded: by this, names are compared."""
    spelling: str
    """As it came, without `;parameters`."""
    joint: str
    """What stands before it: a slash, or an encoded one as it came."""


def in_ascii(path: str) -> str:
    """`path` with what lies outside ASCII percent-encoded."""
    if path.isascii():
        return path
    return quote(path.encode("utf-8", "surrogatepass"), safe=_ASCII)


def names(path: str) -> list[Name]:
    """The names of `path`, which is in ASCII, decoded once, dot segments resolved."""
    return _resolved(_split(path, _SEPARATOR), _decoded)


def spoken(names: list[Name]) -> str:
    """Names as people write them: decoded once, in their letter case, with slashes between them."""
    text = "/".join(_decoded(name.spelling) for name in names)
    return text.encode("utf-8", "replace").decode()


def is_read_once(names: list[Name]) -> bool:
    """Whether servers agree on these names, decoded: even servers that decode them twice, or take
    them to end at a space."""
    text = "/".join(_decoded(name.spelling) for name in names)
    return last_reading(text) == text and is_read_alike(text)


def last_reading(path: str) -> str | None:
    """`path` decoded until that changes nothing; None where that takes too many times."""
    text = path
    for _ in range(MAX_DECODINGS):
        decoded = _decoded(text)
        if decoded == text:
            return text
        text = decoded
    return None if _decoded(text) != text else text


def unbroken(text: str) -> str:
    """A decoded path without the tabs and line breaks, which browsers' URL parsers leave out."""
    return text.translate(_NO_BREAKS)


def names_of_text(text: str) -> list[Name]:
    """The same as names(), for a text that is decoded already."""
    return _resolved(_split(text, _PLAIN_SEPARATOR), str)


def words(text: str) -> list[str]:
    """Every word of a decoded path, however it is split, even those that dot segments remove."""
    return [word.strip(_LOOSE) for word in _BREAK.split(text.casefold())]


def is_read_alike(text: str) -> bool:
    """Whether servers agree on how a decoded path is split, apart from its encoding."""
    return _ENDS_EARLY.search(text) is None and not climbs(text)


def hides_slashes(path: str, text: str) -> bool:
    """Whether a server might see fewer slashes in `path` than in `text`, its last reading."""
    return "\\" in text or path.count("/") < text.count("/")


def climbs(path: str) -> bool:
    """Whether a server might find a `..` in `path`."""
    if ".." not in path and "%" not in path:
        return False
    text = last_reading(path)
    return text is None or ".." in words(text) or ".." in words(unbroken(text))


def join(parts: Iterable[str]) -> str:
    """One path of parts that begin with their joints. What no URL may hold is encoded."""
    return quote("".join(parts), safe="/:@!$&'()*+,=~%") or "/"


def _split(path: str, separator: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Each part between separators, and the separator before it."""
    parts = separator.split(path)
    return zip(parts[::2], ["/", *parts[1::2]], strict=True)


def _resolved(parts: Iterable[tuple[str, str]], decode: Callable[[str], str]) -> list[Name]:
    found: list[Name] = []
    follows = False
    for part, joint in parts:
        spelling = part.partition(";")[0]
        word = decode(spelling).partition(";")[0].casefold()
        is_name = word not in ("", ".", "..")
        if is_name:
            kept = joint if follows and joint.startswith("%") else "/"
            found.append(Name(word, spelling, kept))
        elif word == "..":
            del found[-1:]
        follows = is_name
    return _without_loose_end(found)


def _without_loose_end(found: list[Name]) -> list[Name]:
    while found:
        last = found.pop()
        word = last.word.rstrip(_LOOSE)
        if word == "..":
            del found[-1:]
        elif word not in ("", "."):
            return [*found, last._replace(word=word)]
    return found


def _decoded(text: str) -> str:
    if "%" not in text:
        return text
    raw = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")
