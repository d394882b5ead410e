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
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# A backslash may stand in a file name, but not before a quotation mark: readers differ there.
_PARAMETER = re.compile(
    rf';[ \t]*({_WORD})=(?:"((?:[^"\\\r\n]|\\(?!"))*)"|({_WORD}))[ \t]*', re.ASCII
)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}", re.ASCII)
_HEADER = re.compile(rf"({_WORD}):[ \t]*([^\r\n\x00]*)", re.ASCII)
_IDENTITIES = ("7bit", "8bit", "binary")
_CHARSETS = ("utf-8", "us-ascii")


class Field(NamedTuple):
    """A field that is no file."""

    name: str
    value: str


def is_form(content_type: str) -> bool:
    """Whether a Content-Type says multipart/form-data."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def fields(body: bytes, content_type: str) -> list[Field]:
    """The fields of a form, without its files. Raises UnreadableBody."""
    try:
        return list(_fields(body, _boundary(content_type)))
    except (ValueError, KeyError):
        raise UnreadableBody(UserState.BAD_FORM) from None


def _boundary(content_type: str) -> bytes:
    kind, parameters = _read_value(content_type)
    boundary = parameters["boundary"]
    if kind != "multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise ValueError("no boundary that can be trusted")
    return boundary.encode()


def _fields(body: bytes, boundary: bytes) -> Iterator[Field]:
    delimiter = b"\r\n--" + boundary
    before, *parts, end = (b"\r\n" + body).split(delimiter, MAX_PARTS)
    # What stands before the first part or after the last is read by some servers and not by others.
    if before or not end.startswith(b"--") or end[2:].strip(b"\r\n"):
        raise ValueError("not one complete form")
    for part in parts:
        field = _field(part)
        if field is not None:
            yield field


def _field(part: bytes) -> Field | None:
    start, empty_line, value = part.partition(b"\r\n\r\n")
    if not start.startswith(b"\r\n") or not empty_line:
        raise ValueError("a part without headers")
    headers = _read_headers(start[2:].decode())
    kind, parameters = _read_value(headers.pop("content-disposition"))
    content_type, options = _read_value(headers.pop("content-type", "text/plain"))
    encoding = headers.pop("content-transfer-encoding", "binary").lower()
    if kind != "form-data" or encoding not in _IDENTITIES or "multipart/" in content_type:
        raise ValueError("a part that is no field")
    if not parameters.keys() <= {"name", "filename", "filename*"}:
        raise ValueError("parameters that servers read differently")
    name = parameters["name"]
    if len(parameters) > 1:
        return None  # A file never counts.
    if name == "_charset_" or options.get("charset", "utf-8").lower() not in _CHARSETS:
        raise ValueError("another charset")
    return Field(name, value.decode())


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
    return value.strip().lower(), parameters
