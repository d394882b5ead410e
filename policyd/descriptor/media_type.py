"""Content-Type and Content-Disposition, read so strictly that every server reads them the same.

Both are a value and its parameters (RFC 9110, section 8.3.1, and RFC 6266). Libraries forgive loose
ones, each in its own way, and a body is then a form to one and JSON to another. So what two of them
could read differently counts as malformed. Each text is bounded, and then walked once.
"""

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

MAX_CONTENT_TYPE = 1024
"""Characters of a Content-Type that are read."""
_MAX_CACHED = 64
"""Characters of a Content-Type up to which its reading is cached."""
MAX_FIELDS = 1000
"""Fields that a JSON body may have where an upstream could take it for a urlencoded form."""
MULTIPART = "multipart/form-data"
SDP = "application/sdp"
UTF_8 = ("utf-8", "utf8")
ASCII_ALIKE = ("us-ascii", "ascii", "iso-8859-1", "latin1", "windows-1252")
"""Charsets in which ASCII reads as in UTF-8. What lies outside ASCII does not."""

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_VALUE = re.compile(rf"({_WORD}(?:/{_WORD})?+) *+", re.ASCII)
# Neither a tab nor another control character: servers differ there.
_PARAMETER = re.compile(
    rf'; *+({_WORD})=(?:"((?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*+)"|({_WORD})) *+', re.ASCII
)
# After a semicolon, too, at which older libraries begin a field.
_FORM_FIELD = re.compile(rb"[&;]([^&;=]*+)=")
_EDGE = re.compile(rb"[^0-9a-z]*+([0-9a-z_]*+)")
ASKED_FOR = frozenset(
    (
        b"model",
        b"messages",
        b"prompt",
        b"input",
        b"image",
        b"images",
        b"conversation",
        b"previous_response_id",
        b"user",
        b"safety_identifier",
        b"session",
        b"sdp",
    )
)
"""Fields of which every endpoint in scope needs at least one to do anything."""


class MediaType(NamedTuple):
    """A Content-Type: its type and subtype in lower case, and its parameters."""

    kind: str
    parameters: dict[str, str]


def parse(text: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case, and its parameters by name in lower case.

    A parameter in quotation marks keeps its backslashes. Raises ValueError.
    """
    match = _VALUE.match(text)
    if match is None:
        raise ValueError("no value")
    parameters: dict[str, str] = {}
    position = match.end()
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None or found[1].lower() in parameters:
            raise ValueError("a malformed parameter, or one that stands there twice")
        parameters[found[1].lower()] = found[3] if found[2] is None else found[2]
        position = found.end()
    return match[1].lower(), parameters


def media_type(content_type: str) -> MediaType:
    """The media type that a Content-Type names; its kind is empty where that is.

    Raises ValueError where two servers could read it differently.
    """
    if len(content_type) > MAX_CONTENT_TYPE:
        raise ValueError("too long")
    text = content_type.strip(" \t")
    if not text:
        return MediaType("", {})
    kind, parameters = parse(text)
    for name, value in parameters.items():
        if "*" in name or "\\" in value:
            raise ValueError("a parameter in an extended spelling, which only some servers read")
    for name in ("charset", "boundary"):
        # Some servers look for the word wherever it stands.
        if text.lower().count(name) != (name in parameters):
            raise ValueError("a parameter that only some servers find")
    return MediaType(kind, parameters)


def claims_multipart(content_type: str) -> bool:
    """Whether a server might take a body of this type for a form in parts."""
    return "multipart" in content_type.lower()


def is_sdp(content_type: str) -> bool:
    """Whether a body of this type is a session description, to every server."""
    try:
        return media_type(content_type).kind == SDP
    except ValueError:
        return False


def reads_as_json(content_type: str, body: bytes, is_coded: bool) -> bool:
    """Whether no upstream that goes by the Content-Type takes `body`, a JSON object, for something
    else. `is_coded` says that the body came compressed.
    """
    kind, charset = (_of_json if len(content_type) <= _MAX_CACHED else _read_of_json)(content_type)
    if charset not in UTF_8 and not (charset in ASCII_ALIKE and body.isascii()):
        return False
    if "urlencoded" in kind:
        # A server that does not decompress the body finds in it what no check here has seen.
        return not (is_coded or _may_be_form(body))
    return "multipart" not in kind


def _read_of_json(content_type: str) -> tuple[str, str]:
    """Type and charset of a body that is read as JSON; both empty where that is malformed."""
    try:
        # A semicolon without a parameter after it is common, and means nothing to any server.
        kind, parameters = media_type(content_type.rstrip("; \t"))
    except ValueError:
        return "", ""
    return kind, parameters.get("charset", "utf-8").lower()


_of_json = lru_cache(maxsize=256)(_read_of_json)


def _may_be_form(body: bytes) -> bool:
    """Whether a JSON object, read as a urlencoded form, has a field that an endpoint asks for."""
    for count, match in enumerate(_FORM_FIELD.finditer(body)):
        name = unquote_to_bytes(match[1]).lower()
        found = _EDGE.match(name)
        if count >= MAX_FIELDS or (found and found[1] in ASKED_FOR):
            return True
    return False
