"""HTTP request -> what the decision needs of it: its headers, and the user in its body.

Bodies are read within bounds: of bytes, decompressed too, of depth and of parts. Whatever cannot be
read for certain gets a state that says why, and never passes for a user.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

from policyd.descriptor import form, identifiers, json_body, media_type
from policyd.descriptor.content_encoding import UnreadableBody, decompress
from policyd.descriptor.identifiers import classify
from policyd.engine.model import (
    IDENTIFIERS,
    SAFETY_IDENTIFIER,
    USER,
    Credential,
    Endpoint,
    UserState,
)

KEY_HEADER = "x-usagepanda-api-key"
OVERRIDE_HEADER = "x-usagepanda-enforce-user-ids"
TRACE_HEADER = "x-usagepanda-trace-id"
PREFIX = "x-usagepanda-"

MAX_BODY = 64 * 2**20
"""Bytes of a body, as it came and decompressed, unless a caller sets its own bound."""
MAX_RAW_BODY = 4 * 2**20
"""The same of a body that a caller of PolicyService sends in place of what it says."""
_MAX_VALUE = identifiers.MAX_VALUE
_MAX_OVERRIDE = 64
_MAX_KEY = 1024
_TOO_LONG = "too long"


class Identifier(NamedTuple):
    """An end-user identifier as found in a body."""

    state: UserState
    value: str = ""
    """Where it is a string: its first 1,024 characters."""


class Facts(NamedTuple):
    """What a body says that matters here."""

    user: Identifier
    safety_identifier: Identifier
    model: str = ""


_TRACE_ID = re.compile(r"[0-9A-Za-z_-]{1,99}")
# Names that some server might take for an identifier's, such as `user[]`.
_LIKE = re.compile(
    rf"[^0-9a-z]*+({'|'.join(IDENTIFIERS)})(?![0-9a-z_-]).*", re.IGNORECASE | re.DOTALL
)
_ABSENT = Identifier(UserState.ABSENT)


# --- headers -----------------------------------------------------------------------------------


def values(headers: Iterable[tuple[str, str]], name: str) -> tuple[str, ...]:
    """The values of the header `name` (in lower case), repeats kept."""
    return tuple(value for header, value in headers if header.lower() == name)


def agreed(given: Iterable[str]) -> str | None:
    """The value that all of them are: empty if there is none, None if they differ."""
    found = set(given)
    return None if len(found) > 1 else next(iter(found), "")


def trace_id(given: str) -> str:
    """The trace ID `given`, empty where it has not the right form."""
    return given if _TRACE_ID.fullmatch(given) else ""


def override(given: str) -> str:
    """A value of the override header, cut where it is longer than any that says something."""
    return given if len(given) <= _MAX_OVERRIDE else _TOO_LONG


def credential(given: tuple[str, ...]) -> tuple[Credential, str]:
    """How the values of the key header name an API key, and which.

    One longer than any key is cut to a text that is none.
    """
    keys = {value.strip(" \t") if len(value) <= _MAX_KEY else _TOO_LONG for value in given}
    if not keys:
        return Credential.MISSING, ""
    if len(keys) > 1:
        return Credential.CONFLICTING, ""
    return Credential.GIVEN, keys.pop()


# --- bodies ------------------------------------------------------------------------------------


def read_body(
    body: bytes,
    content_type: str | None,
    content_encoding: str,
    endpoint: Endpoint | None,
    limit: int = MAX_BODY,
) -> Facts:
    """Read the facts out of a body. Total: any bytes and strings will do.

    `endpoint` is what the request asks for, None if that is not known; it settles whether the body
    may be a form. Otherwise it is read as JSON, whatever its type claims, as upstreams do; one that
    an upstream could take for something else is refused.
    `content_type` is None where several headers differ: nobody knows which the upstream follows.
    """
    takes_form = endpoint is None or endpoint.takes_form
    if content_type is None:
        return unreadable(UserState.BAD_FORM if takes_form else UserState.NOT_JSON)
    try:
        if takes_form and media_type.claims_multipart(content_type):
            return _read_form(body, content_type, content_encoding, limit)
        return _read_json(body, content_type, content_encoding, limit)
    except UnreadableBody as problem:
        return unreadable(problem.state)


def unreadable(state: UserState) -> Facts:
    """The facts of a body that cannot be read, for the reason that `state` names."""
    return Facts(Identifier(state), Identifier(state))


TOO_LARGE = unreadable(UserState.TOO_LARGE)
"""The facts of a body over the bound."""


def _read_json(body: bytes, content_type: str, content_encoding: str, limit: int) -> Facts:
    decoded = decompress(body, content_encoding, limit, json_body.begins_like_json)
    if not media_type.reads_as_json(content_type, decoded, is_coded=decoded is not body):
        raise UnreadableBody(UserState.NOT_JSON)
    found = json_body.read(decoded)
    return Facts(
        _identifier(found.user, USER),
        _identifier(found.safety_identifier, SAFETY_IDENTIFIER),
        json_body.string(found.model)[:_MAX_VALUE] if found.model.startswith(b'"') else "",
    )


def _identifier(raws: list[bytes], identifier: str) -> Identifier:
    if not raws:
        return _ABSENT
    found = [_json_identifier(raw, identifier) for raw in raws]
    return max(found, key=lambda one: one.state)


def _json_identifier(raw: bytes, identifier: str) -> Identifier:
    first = raw[:1]
    if first == b'"':
        value = json_body.string(raw)
        return Identifier(classify(value, identifier), value[:_MAX_VALUE])
    if first in (b"n", b"f"):
        return Identifier(UserState.EMPTY)
    if first in (b"t", b"[", b"{"):
        return Identifier(UserState.NOT_STRING)
    return Identifier(UserState.NOT_STRING if float(raw) else UserState.EMPTY)


# --- forms -------------------------------------------------------------------------------------


def _read_form(body: bytes, content_type: str, content_encoding: str, limit: int) -> Facts:
    boundary = form.boundary(content_type)
    delimiter = b"--" + boundary

    def is_readable(coded: bytes) -> bool:
        return delimiter in coded or json_body.begins_like_json(coded)

    decoded = decompress(body, content_encoding, limit, is_readable)
    fields = form.fields(decoded, boundary, *IDENTIFIERS, "model")
    user, safety_identifier = (_worst_field(fields, name) for name in IDENTIFIERS)
    models = [field.value for field in fields if field.name == "model" and field.value]
    return Facts(user, safety_identifier, models[0][:_MAX_VALUE] if models else "")


def _worst_field(fields: list[form.Field], name: str) -> Identifier:
    found = [_form_identifier(field, name) for field in fields if _is_like(name, field.name)]
    return max(found, default=_ABSENT)


def _is_like(name: str, given: str) -> bool:
    found = (_LIKE.fullmatch(spelling) for spelling in (given, unquote(given)))
    return any(match and match[1].casefold() == name for match in found)


def _form_identifier(field: form.Field, name: str) -> Identifier:
    # A file, or a name that only some servers take for `name`, is none, whatever else is there.
    if field.name != name or field.value is None:
        return _ABSENT
    return Identifier(classify(field.value, name), field.value[:_MAX_VALUE])
