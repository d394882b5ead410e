"""A request to the gateway -> what policyd's describer needs of it."""

from typing import Any
from urllib.parse import quote

from gateway.headers import RequestHeaders
from policyd.descriptor.describe import HttpRequest
from policyd.descriptor.headers import PREFIX, pairs
from policyd.engine import method_override
from policyd.engine.places import SAFETY_HEADER

Scope = dict[str, Any]

MAX_PATH = 8 * 1024
MAX_OWN_HEADERS = 8 * 1024
"""Bytes of the path, and of the headers for policyd, as many requests go there in one message."""
_ASCII = "".join(map(chr, range(0x80)))


def is_too_large(path: bytes, headers: RequestHeaders) -> bool:
    """Whether this request's descriptor would be larger than policyd should be sent."""
    own = 0
    for name, values in headers.values.items():
        if name.startswith(PREFIX) or name == SAFETY_HEADER or name in headers.end_users:
            own += len(name) * len(values) + sum(map(len, values))
    return len(path) > MAX_PATH or own > MAX_OWN_HEADERS


def text(raw: bytes) -> str:
    """A part of the request target, unchanged but for bytes outside ASCII: percent-encoded."""
    return raw.decode() if raw.isascii() else quote(raw, safe=_ASCII)


def http_request(scope: Scope, path: str, headers: RequestHeaders, api_key: str) -> HttpRequest:
    """The request, to be described; `path` is the one that goes upstream.

    `api_key` counts where the client sent none.
    """
    return HttpRequest(
        scope["method"],
        path,
        text(scope["query_string"]),
        headers.values,
        source_ip=scope["client"][0] if scope["client"] else "",
        key=api_key,
        end_user_headers=headers.end_users,
    )


def is_safe(scope: Scope, headers: RequestHeaders) -> bool:
    """Whether the request only makes the upstream read, so that it may be sent again: GET and HEAD,
    where nothing makes another method of them.
    """
    if scope["method"] not in ("GET", "HEAD"):
        return False
    query = text(scope["query_string"])
    return not method_override.overriding(scope["method"], pairs(headers.values), query)
