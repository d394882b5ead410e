"""HTTP request -> what the decision needs of it: its headers, and the user in its body.

Bodies are read within bounds: of bytes, decompressed too, of depth and of parts. Whatever cannot be
read for certain gets a state that says why, and never passes for a user.
"""

import re
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import msgspec

from policyd import form, identifiers
from policyd.content_encoding import UnreadableBody, decompress
from policyd.identifiers import classify
from policyd.model import IDENTIFIERS, SAFETY_IDENTIFIER, USER, Credential, Endpoint, UserState

KEY_HEADER = "x-usagepanda-api-key"
OVERRIDE_HEADER = "x-usagepanda-enforce-user-ids"
TRACE_HEADER = "x-usagepanda-trace-id"
PREFIX = "x-usagepanda-"

MAX_BODY = 64 * 2**20
"""Bytes of a body, as it came and decompressed, unless a caller sets its own bound."""
MAX_RAW_BODY = 4 * 2**20
"""The same of a body that a caller of PolicyService sends in place of what it says."""
MAX_DEPTH = 500
"""How deep JSON may nest. Python's own parsers stop at about twice this."""
MAX_TOKENS = 500_000
"""How many strings and brackets a body may have where they have to be looked at one by one."""
_MAX_VALUE = identifiers.MAX_VALUE


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


def credential(given: tuple[str, ...]) -> tuple[Credential, str]:
    """How the values of the key header name an API key, and which."""
    keys = {value.strip(" \t") for value in given}
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
    an upstream could take for an urlencoded form is refused.
    `content_type` is None where several headers differ: nobody knows which the upstream follows.
    """
    takes_form = endpoint is None or endpoint.takes_form
    if content_type is None:
        return unreadable(UserState.BAD_FORM if takes_form else UserState.NOT_JSON)
    try:
        decoded = decompress(body, content_encoding, limit)
        if form.is_form(content_type) and takes_form:
            return _read_form(decoded, content_type)
        if _may_be_other_than_json(content_type, decoded):
            return unreadable(UserState.NOT_JSON)
        return _read_json(decoded)
    except UnreadableBody as problem:
        return unreadable(problem.state)


def unreadable(state: UserState) -> Facts:
    """The facts of a body that cannot be read, for the reason that `state` names."""
    return Facts(Identifier(state), Identifier(state))


TOO_LARGE = unreadable(UserState.TOO_LARGE)
"""The facts of a body over the bound."""


def _may_be_other_than_json(content_type: str, body: bytes) -> bool:
    """Whether an upstream that goes by the Content-Type may read something else than this JSON."""
    kind = content_type.lower()
    if any(charset not in _CHARSETS for charset in _CHARSET.findall(kind)):
        return True
    is_urlencoded = kind.partition(";")[0].strip() == "application/x-www-form-urlencoded"
    return is_urlencoded and _FORM_FIELD.search(body) is not None


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
    rb'"(?:(%s)|(%s))"[ \t\r\n]*:' % (_spellings(USER), _spellings(SAFETY_IDENTIFIER)),
    re.IGNORECASE,
)
_TOKEN = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")([ \t\r\n]*:[ \t\r\n]*)?|[\[\]{}]', re.DOTALL)
_CHARSET = re.compile(r"charset[^=;]*=[\s\"']*([^\s\"';,]*)")
# Under the last two, JSON in UTF-8 reads otherwise, but nothing in it turns blank.
_CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1", "windows-1252")
_LIKE = {
    name: re.compile(rf"[^0-9a-z]*{name}(?![0-9a-z_-]).*", re.IGNORECASE | re.DOTALL)
    for name in IDENTIFIERS
}
"""What some servers take for the form field `name`: `user[]`, say."""
_FORM_FIELD = re.compile(rb"&[^&=]+=")
_SCALAR = re.compile(rb"[^\s,\]}]+")
_STRING = re.compile(rb'"[^"]*"')
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = {ord(bracket): step for bracket, step in (("[", 1), ("{", 1), ("]", -1), ("}", -1))}


def _read_json(body: bytes) -> Facts:
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
        found_users, found_safety = _scan(body)
    else:
        found_users, found_safety = _present(found.user), _present(found.safety_identifier)
    return Facts(
        _identifier(found_users, USER),
        _identifier(found_safety, SAFETY_IDENTIFIER),
        _json_string(found.model),
    )


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
    brackets = body.count(b"{") + body.count(b"[")
    strings = body.count(b'"') // 2
    if strings > 2 * MAX_TOKENS or (brackets > MAX_DEPTH and max(brackets, strings) > MAX_TOKENS):
        raise UnreadableBody(UserState.TOO_COMPLEX)
    if brackets > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise UnreadableBody(UserState.TOO_COMPLEX)


def _depth(body: bytes) -> int:
    """How deep well-formed JSON with brackets nests."""
    # Without escapes, a string ends at the next quotation mark, and regular expressions are quick.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    structure = _STRING.sub(b"", plain.translate(None, _NOT_STRUCTURE))
    return max(accumulate(map(_STEPS.__getitem__, structure)))


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
            name = _string_decoder.decode(match[1])
            if name.casefold() in found:
                found[name.casefold()].append(_value_at(body, match.end()))
                exact.add(name)
    users, safety_identifiers = (found[name] if name in exact else [] for name in found)
    return users, safety_identifiers


def _value_at(body: bytes, start: int) -> bytes:
    match = _TOKEN.match(body, start) or _SCALAR.match(body, start)
    assert match is not None  # A well-formed member has a value.
    return match[1] if body[start] == 0x22 else match[0]


def _identifier(raws: list[bytes], identifier: str) -> Identifier:
    if not raws:
        return _ABSENT
    found = [_json_identifier(raw, identifier) for raw in raws]
    return max(found, key=lambda one: one.state)


def _json_identifier(raw: bytes, identifier: str) -> Identifier:
    first = raw[:1]
    if first == b'"':
        value = _string_decoder.decode(raw)
        return Identifier(classify(value, identifier), value[:_MAX_VALUE])
    if first in (b"n", b"f"):
        return Identifier(UserState.EMPTY)
    if first in (b"t", b"[", b"{"):
        return Identifier(UserState.NOT_STRING)
    return Identifier(UserState.NOT_STRING if float(raw) else UserState.EMPTY)


def _json_string(raw: msgspec.Raw | msgspec.UnsetType) -> str:
    value = b"" if raw is msgspec.UNSET else bytes(raw)
    return _string_decoder.decode(value)[:_MAX_VALUE] if value.startswith(b'"') else ""


# --- forms -------------------------------------------------------------------------------------


def _read_form(body: bytes, content_type: str) -> Facts:
    fields = form.fields(body, content_type, *IDENTIFIERS, "model")
    user, safety_identifier = (_worst_field(fields, name) for name in IDENTIFIERS)
    models = [field.value for field in fields if field.name == "model" and field.value]
    return Facts(user, safety_identifier, models[0][:_MAX_VALUE] if models else "")


def _worst_field(fields: list[form.Field], name: str) -> Identifier:
    found = [_form_identifier(field, name) for field in fields if _LIKE[name].fullmatch(field.name)]
    return max(found, default=_ABSENT)


def _form_identifier(field: form.Field, name: str) -> Identifier:
    # A file, or a name that only some servers take for `name`, is none, whatever else is there.
    if field.name != name or field.value is None:
        return _ABSENT
    return Identifier(classify(field.value, name), field.value[:_MAX_VALUE])
