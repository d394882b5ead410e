"""multipart/form-data, read so strictly that every server reads it the same.

Libraries forgive repeated parameters, doubled headers and other charsets, each in its own way.
Where two readings differ, a user that is found here may be none to the upstream. So what RFC 7578
does not ask for counts as unreadable.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from policyd.descriptor import prompt, stated
from policyd.descriptor.content_encoding import UnreadableBody, decompress
from policyd.descriptor.identifiers import (
    ABSENT,
    MAX_VALUE,
    BodyAttributes,
    Identifier,
    from_string,
    together,
)
from policyd.descriptor.json_body import begins_like_json, session_models
from policyd.descriptor.media_type import ASCII_ALIKE, MULTIPART, UTF_8, media_type, parse
from policyd.engine.places import IDENTIFIERS
from policyd.engine.states import Number, NumberState, UserState

MAX_PARTS = 1000
MAX_PART_HEAD = 8 * 1024
"""Bytes of a part's headers."""
# Without the comma, at which some proxies split a header, and white space, which some drop. Some
# servers take a dash at its end for the end of the form.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_./:=?-]{0,69}[0-9A-Za-z'()+_./:=?]", re.ASCII)
# One space after the colon, as every client writes it: some readers count on that.
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]++): ([^\x00-\x1f\x7f]*+)", re.ASCII)
_NOT_LETTERS = re.compile(r"[^a-z_]++")
_PARAMETERS = {"name", "filename", "filename*"}
_MODEL = "model"
_PROMPT = "prompt"
_SESSION = "session"
_NAMES = (*IDENTIFIERS, _MODEL, _PROMPT, _SESSION, *stated.NUMBERS)
# Names that some server might take for one that matters, such as `user[]`.
_LIKE = re.compile(rf"[^0-9a-z]*+({'|'.join(_NAMES)})(?![0-9a-z_-]).*", re.IGNORECASE | re.DOTALL)
_IDENTITIES = ("7bit", "8bit", "binary")


class Field(NamedTuple):
    """A part of a form."""

    name: str
    value: str | None
    """None for a file, which never counts, and for a field whose value was not wanted."""
    content: bytes = b""
    """As it was sent, a file's too."""
    is_file: bool = False


def read(body: bytes, content_type: str, content_encoding: str, limit: int) -> BodyAttributes:
    """The attributes of a form. Raises UnreadableBody."""
    between = boundary(content_type)
    delimiter = b"--" + between

    def is_readable(coded: bytes) -> bool:
        return delimiter in coded or begins_like_json(coded)

    decoded = decompress(body, content_encoding, limit, is_readable)
    found = fields(decoded, between, *IDENTIFIERS, _MODEL)
    user, safety_identifier = (_identifier(found, name) for name in IDENTIFIERS)
    exact, others = _models(found)
    model = next((one for one in exact if isinstance(one, str)), "")
    numbers = {name: given for name in stated.NUMBERS if (given := _occurrences(found, name))}
    return BodyAttributes(
        user,
        safety_identifier,
        model[:MAX_VALUE],
        stated.model_state(exact, others),
        stated.token_limit(numbers),
        stated.choices(numbers),
        _characters(found),
    )


def _identifier(found: list[Field], name: str) -> Identifier:
    given = _like(found, name)
    return together([_identifier_of(field, name) for field in given]) if given else ABSENT


def _like(found: list[Field], name: str) -> list[Field]:
    """The fields that some server might take for `name`."""
    return [field for field in found if _is_like(name, field.name)]


def _is_like(name: str, given: str) -> bool:
    found = (_LIKE.fullmatch(spelling) for spelling in (given, unquote(given)))
    return any(match and match[1].casefold() == name for match in found)


def _models(found: list[Field]) -> tuple[list[object], list[object]]:
    """The values of the model's own name, and those that only some servers take for the model's."""
    exact: list[object] = []
    others: list[object] = []
    for field in _like(found, _MODEL):
        (exact if field.name == _MODEL else others).append(_model(field))
    for field in _like(found, _SESSION):
        for is_exact, model in _session_models(field):
            (exact if is_exact and field.name == _SESSION else others).append(model)
    return exact, others


def _session_models(field: Field) -> list[tuple[bool, object]]:
    # A session that cannot be read may name any model.
    try:
        return session_models(field.content)
    except UnreadableBody:
        return [(True, stated.NOT_STRING)]


def _model(field: Field) -> object:
    return stated.NOT_STRING if field.is_file else field.content.decode(errors="replace")


def _occurrences(found: list[Field], name: str) -> list[tuple[bool, int]]:
    # No server reads a file's content as a number.
    return [
        (field.name == name, stated.value(b"" if field.is_file else field.content))
        for field in _like(found, name)
    ]


def _characters(found: list[Field]) -> Number:
    """The characters of all fields that some server may read as the prompt, files too."""
    texts = [field.content for field in _like(found, _PROMPT)]
    return Number(NumberState.GIVEN, sum(map(prompt.code_points, texts)))


def _identifier_of(field: Field, name: str) -> Identifier:
    # A file, or a name that only some servers take for `name`, makes it absent, whatever else is
    # there.
    if field.name != name or field.value is None:
        return ABSENT
    return from_string(field.value, name)


def boundary(content_type: str) -> bytes:
    """The boundary between the parts of a form of this type. Raises UnreadableBody."""
    try:
        kind, parameters = media_type(content_type)
        found = parameters.pop("boundary")
        charset = parameters.pop("charset", "utf-8").lower()
    except (ValueError, KeyError):
        raise UnreadableBody(UserState.BAD_FORM) from None
    is_sound = kind == MULTIPART and not parameters and charset in UTF_8
    if not is_sound or not _BOUNDARY.fullmatch(found):
        raise UnreadableBody(UserState.BAD_FORM)
    return found.encode()


def fields(body: bytes, boundary: bytes, *wanted: str) -> list[Field]:
    """The parts of a form, with the values of the `wanted` fields. Raises UnreadableBody."""
    try:
        return list(_fields(body, boundary, wanted))
    except (ValueError, KeyError):
        raise UnreadableBody(UserState.BAD_FORM) from None


def _fields(body: bytes, boundary: bytes, wanted: tuple[str, ...]) -> Iterator[Field]:
    delimiter = b"\r\n--" + boundary
    before, *parts, end = (b"\r\n" + body).split(delimiter, MAX_PARTS)
    # What stands before the first part or after the last is read by some servers and not by others.
    if before or end not in (b"--", b"--\r\n"):
        raise ValueError("not one complete form")
    # Some servers take the boundary for one wherever it stands.
    if body.count(b"--" + boundary) != len(parts) + 1:
        raise ValueError("the boundary within a part")
    for part in parts:
        yield _field(part, wanted)


def _field(part: bytes, wanted: tuple[str, ...]) -> Field:
    start, empty_line, value = part.partition(b"\r\n\r\n")
    if not start.startswith(b"\r\n") or not empty_line or len(start) > MAX_PART_HEAD:
        raise ValueError("a part without headers, or with too many")
    headers = _read_headers(start[2:].decode())
    name, is_file = _read_disposition(headers.pop("content-disposition"), wanted)
    encoding = headers.pop("content-transfer-encoding", "binary").lower()
    length = headers.pop("content-length", str(len(value)))
    kind = headers.get("content-type", "").lower()
    if encoding not in _IDENTITIES or length != str(len(value)):
        raise ValueError("a part that does not end at its Content-Length, or is encoded")
    if "multipart" in kind or "message" in kind:
        raise ValueError("a part that some servers look into")
    text = _value(value, headers) if name in wanted and not is_file else None
    return Field(name, text, value, is_file)


def _read_disposition(text: str, wanted: tuple[str, ...]) -> tuple[str, bool]:
    """A part's name, and whether it is a file."""
    kind, parameters = parse(text)
    if kind != "form-data" or "=?" in text:
        raise ValueError("a part that is no field, or a name in MIME's code")
    if next(iter(parameters), "") != "name" or not parameters.keys() <= _PARAMETERS:
        raise ValueError("parameters that servers read differently")
    if any(map(_may_hold_parameter, parameters.values())):
        raise ValueError("a value in which some servers find another parameter")
    name = parameters["name"]
    if "\\" in name:
        name = _unescaped(name, wanted)
    if name == "_charset_":
        raise ValueError("a field that names the charset of the others")
    return name, len(parameters) > 1


def _may_hold_parameter(value: str) -> bool:
    """Whether a server that takes no notice of quotation marks might find a parameter in it."""
    return "=" in value and (";" in value or '\\"' in value or "name" in value.lower())


def _unescaped(name: str, wanted: tuple[str, ...]) -> str:
    """A name that holds escaped quotation marks.

    Raises ValueError where some server may read it as one that matters.
    """
    letters = _NOT_LETTERS.sub("", name.lower())
    plain = name.replace('\\"', '"')
    if "\\" in plain or any(one in letters for one in wanted):
        raise ValueError("a name that servers read differently")
    return plain


def _value(value: bytes, headers: dict[str, str]) -> str:
    """The text of a field whose other headers are `headers`."""
    kind, options = media_type(headers.pop("content-type", "text/plain"))
    charset = options.pop("charset", "utf-8").lower()
    is_known = charset in UTF_8 or (charset in ASCII_ALIKE and value.isascii())
    if headers or options or kind != "text/plain" or not is_known:
        raise ValueError("a field that servers read differently")
    if b"\0" in value:
        raise ValueError("a value that ends early to some")
    return value.decode()


def _read_headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in text.split("\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None or match[1].lower() in headers:
            raise ValueError("a malformed header, or one that stands there twice")
        headers[match[1].lower()] = match[2]
    return headers
