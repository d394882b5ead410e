"""Headers: which ones the gateway reads, which ones it forwards, and their letter case."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from policyd.asgi.reply import HeaderName, exact
from policyd.descriptor.describe import READ
from policyd.descriptor.headers import KEY_HEADER, PREFIX, credential
from policyd.engine.places import SAFETY_HEADER

RawHeaders = Iterable[tuple[bytes, bytes]]

# RFC 9110, section 7.6.1, and the older names that it mentions: for one hop only.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"http2-settings",
    }
)
# Some upstreams read an underscore as a dash, and policyd has not judged the body by these.
_TWINS = frozenset(
    {
        b"content_encoding",
        b"content_length",
        b"content_type",
        b"openai-safety_identifier",
        b"openai_safety-identifier",
        b"openai_safety_identifier",
        b"transfer_encoding",
    }
)
_NOT_FORWARDED = _HOP_BY_HOP | _TWINS | {b"host"}
# A Connection header cannot name these: what was judged by them must reach the upstream.
_END_TO_END = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        SAFETY_HEADER.encode(),
    }
)
_READ = {
    name.encode(): name
    for name in READ | {"connection", "content-length", "transfer-encoding", "upgrade"}
}
_OWN = PREFIX.encode()
_OWN_OR_TWIN = _OWN.rstrip(b"-")
_GARBLED = re.compile("[\udc80-\udcff]")
_NONE: tuple[str, ...] = ()


class Trust(NamedTuple):
    """Which headers may name the end user, and whether this client's do."""

    names: frozenset[bytes] = frozenset()
    """All that may, from any client, in lower case and with dashes."""
    read: Mapping[bytes, str] = {}
    """Those that do from this client, and their names as text. The others are dropped."""

    def drops(self, lower: bytes) -> bool:
        """Whether the header of this name is neither read nor forwarded, as its twins never are."""
        return lower not in self.read and lower.replace(b"_", b"-") in self.names


NO_TRUST = Trust()


class RequestHeaders(NamedTuple):
    """A request's headers, sorted by their reader."""

    forwarded: list[tuple[str, str]]
    """Those for the upstream, in order and letter case, as they came."""
    values: dict[str, list[str]]
    """Those for the gateway and policyd, x-usagepanda-* among them, by name in lower case. An
    underscore twin of x-usagepanda-* is neither here nor forwarded."""
    end_users: frozenset[str] = frozenset()
    """The names of headers that may name the end user, whether or not the request has them."""

    def all(self, name: str) -> list[str] | tuple[str, ...]:
        """The values of a header that the gateway reads, repeats kept."""
        return self.values.get(name, _NONE)

    def first(self, name: str) -> str:
        """The first value of a header that the gateway reads, or an empty string."""
        return next(iter(self.all(name)), "")

    @property
    def has_body(self) -> bool:
        """Whether they announce a body."""
        return "transfer-encoding" in self.values or self.first("content-length") not in ("", "0")

    @property
    def content_length(self) -> int | None:
        """How many bytes of body they announce. None: they do not say."""
        value = self.first("content-length")
        return int(value.lstrip("0") or "0") if value else None

    @property
    def names_key(self) -> bool:
        """Whether they name one API key."""
        return bool(credential(self.all(KEY_HEADER))[1])

    @property
    def is_garbled(self) -> bool:
        """Whether the value of one to be forwarded is not UTF-8."""
        return any(not value.isascii() and _GARBLED.search(value) for _, value in self.forwarded)


def read_request(raw: RawHeaders, trust: Trust = NO_TRUST) -> RequestHeaders:
    """Sort a request's headers. Total: any bytes will do, names in any letter case."""
    headers = RequestHeaders([], {}, frozenset(trust.read.values()))
    for name, padded in raw:
        lower = name.lower()
        value = padded.strip(b" \t")
        text = _text(value)
        if read := _READ.get(lower) or trust.read.get(lower):
            headers.values.setdefault(read, []).append(text)
        if lower[: len(_OWN_OR_TWIN)].replace(b"_", b"-") == _OWN_OR_TWIN:
            if lower.startswith(_OWN):
                own = headers.values.setdefault(lower.decode("latin-1"), [])
                own.append(value.decode("latin-1"))
        elif lower not in _NOT_FORWARDED and not (trust.names and trust.drops(lower)):
            headers.forwarded.append((name.decode("latin-1"), text))
    if "connection" not in headers.values:
        return headers
    named = _named_by(",".join(headers.all("connection"))) - trust.read.keys()
    return headers._replace(
        forwarded=[pair for pair in headers.forwarded if pair[0].lower().encode() not in named]
    )


def _named_by(connection: str) -> set[bytes]:
    options = connection.encode("utf-8", "replace").lower().split(b",")
    return {option.strip(b" \t") for option in options} - _END_TO_END


def _text(value: bytes) -> str:
    # The HTTP client writes headers in UTF-8, so UTF-8 goes upstream byte for byte. Other bytes
    # become lone surrogates, which is_garbled finds.
    return value.decode("utf-8", "surrogateescape")


_ALLOW_ORIGIN = (HeaderName(b"Access-Control-Allow-Origin"), b"*")


def read_response(raw: RawHeaders, has_body: bool) -> list[tuple[bytes, bytes]]:
    """The headers of the upstream's response as the client gets them.

    Without `has_body`, after HEAD or with 304, a Content-Length only says how many bytes there
    would be.
    """
    headers: list[tuple[bytes, bytes]] = []
    dropped: set[bytes] = set()
    allows_origin = False
    for name, value in raw:
        own = exact(name)
        lower = bytes.lower(name)
        if lower == b"connection":
            dropped |= _named_by(value.decode("latin-1"))
        elif lower == b"transfer-encoding":
            dropped.add(b"content-length")
        elif lower not in _HOP_BY_HOP:
            allows_origin |= lower == b"access-control-allow-origin"
            headers.append((own if has_body else HeaderName(name), value))
    if dropped:
        headers = [pair for pair in headers if bytes.lower(pair[0]) not in dropped]
    if not allows_origin:
        headers.append(_ALLOW_ORIGIN)
    return headers
