"""multipart/form-data, read so strictly that every server reads it the same.

Libraries forgive repeated parameters, doubled headers, other charsets, each in its own way. Where
two readings differ, what is a user here is none to the upstream. So what RFC 7578 does not ask for
is refused.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from policyd.content_encoding import UnreadableBody
from policyd.model import UserState

MAX_PARTS = 1000
MAX_PART_HEAD = 8 * 1024
"""Bytes of a part's headers."""
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# A backslash may stand in a file name, but not before a quotation mark: readers differ there.
_PARAMETER = re.compile(
    rf';[ \t]*({_WORD})=(?:"((?:[^"\\\r\n]|\\(?!"))*)"|({_WORD}))[ \t]*', re.ASCII
)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}", re.ASCII)
_HEADER = re.compile(rf"({_WORD}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)", re.ASCII)
_PARAMETERS = {"name", "filename", "filename*"}
_IDENTITIES = ("7bit", "8bit", "binary")
_CHARSETS = ("utf-8", "us-ascii")
_ASCII_ALIKE = ("iso-8859-1", "windows-1252")


class Field(NamedTuple):
    """A part of a form."""

    name: str
    value: str | None
    """None for a file, which never counts, and where nobody asked for it."""


def is_form(content_type: str) -> bool:
    """Whether a Content-Type says multipart/form-data."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def fields(body: bytes, content_type: str, *wanted: str) -> list[Field]:
    """The parts of a form, with the values of the `wanted` fields. Raises UnreadableBody."""
    try:
        return list(_fields(body, _boundary(content_type), wanted))
    except (ValueError, KeyError):
        raise UnreadableBody(UserState.BAD_FORM) from None


def _boundary(content_type: str) -> bytes:
    kind, parameters = _read_value(content_type)
    boundary = parameters.pop("boundary")
    charset = parameters.pop("charset", "utf-8").lower()
    if kind != "multipart/form-data" or parameters or charset not in _CHARSETS:
        raise ValueError("parameters that servers read differently")
    if not _BOUNDARY.fullmatch(boundary):
        raise ValueError("no boundary that can be trusted")
    return boundary.encode()


def _fields(body: bytes, boundary: bytes, wanted: tuple[str, ...]) -> Iterator[Field]:
    delimiter = b"\r\n--" + boundary
    before, *parts, end = (b"\r\n" + body).split(delimiter, MAX_PARTS)
    # What stands before the first part or after the last is read by some servers and not by others.
    if before or not end.startswith(b"--") or end[2:].strip(b"\r\n"):
        raise ValueError("not one complete form")
    # Some take the boundary for one wherever it stands.
    if body.count(b"--" + boundary) != len(parts) + 1:
        raise ValueError("the boundary within a part")
    for part in parts:
        yield _field(part, wanted)


def _field(part: bytes, wanted: tuple[str, ...]) -> Field:
    start, empty_line, value = part.partition(b"\r\n\r\n")
    if not start.startswith(b"\r\n") or not empty_line or len(start) > MAX_PART_HEAD:
        raise ValueError("a part without headers, or with too many")
    headers = _read_headers(start[2:].decode("utf-8", "surrogateescape"))
    kind, parameters = _read_value(headers.pop("content-disposition"))
    encoding = headers.pop("content-transfer-encoding", "binary").lower()
    if kind != "form-data" or encoding not in _IDENTITIES:
        raise ValueError("a part that is no field")
    if next(iter(parameters), "") != "name" or not parameters.keys() <= _PARAMETERS:
        raise ValueError("parameters that servers read differently")
    name = parameters["name"]
    if "\\" in name or name == "_charset_":
        raise ValueError("a name that servers read differently")
    if len(parameters) > 1 or name not in wanted:
        return Field(name, None)
    return Field(name, _value(value, headers))


def _value(value: bytes, headers: dict[str, str]) -> str:
    """The text of a field whose other headers are `headers`."""
    kind, options = _read_value(headers.pop("content-type", "text/plain"))
    length = headers.pop("content-length", str(len(value)))
    charset = options.pop("charset", "utf-8").lower()
    is_known = charset in _CHARSETS or (charset in _ASCII_ALIKE and value.isascii())
    if headers or options or kind != "text/plain" or length != str(len(value)) or not is_known:
        raise ValueError("a field that servers read differently")
    return value.decode()


def _read_headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in text.split("\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None or match[1].lower() in headers:
            raise ValueError("a malformed header, or one that stands there twice")
        headers[match[1].lower()] = match[2].rstrip(" \t")
    return headers


def _read_value(text: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case and its parameters."""
    value = text.partition(";")[0]
    parameters: dict[str, str] = {}
    position = len(value)
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None or match[1].lower() in parameters:
            raise ValueError("a malformed parameter, or one that stands there twice")
        parameters[match[1].lower()] = match[3] if match[2] is None else match[2]
        position = match.end()
    return value.strip(" \t").lower(), parameters
