"""An HTTP request -> the question that policyd is asked about it: facts, never the body."""

from typing import Any
from urllib.parse import quote

from gateway.headers import RequestHeaders
from policyd.descriptor.body_memory import AT_ONCE, Bodies, Held
from policyd.descriptor.describe import MAX_REMARK, put_facts
from policyd.descriptor.headers import KEY_HEADER, agreed
from policyd.descriptor.identifiers import BodyAttributes
from policyd.engine import endpoints, method_override
from policyd.engine.model import Endpoint, Target
from policyd.v1.policy_pb2 import CheckKeyRequest, EvaluateRequest, Header

Scope = dict[str, Any]

MAX_PATH = 8 * 1024
MAX_OWN_HEADERS = 8 * 1024
"""Bytes of path, and of x-usagepanda-* headers: they go to policyd, many requests in a message."""
_ASCII = "".join(map(chr, range(0x80)))


def is_too_large(path: bytes, headers: RequestHeaders) -> bool:
    """Whether a question about this request would be larger than policyd should be sent."""
    own = sum(len(name) + len(value) for name, value in headers.ours)
    return len(path) > MAX_PATH or own > MAX_OWN_HEADERS


def text(raw: bytes) -> str:
    """A part of the request target as it came, but with bytes outside ASCII percent-encoded."""
    return raw.decode() if raw.isascii() else quote(raw, safe=_ASCII)


def target(scope: Scope, path: str, headers: RequestHeaders) -> Target:
    """What the request asks for; `path` is the one that goes upstream."""
    return endpoints.resolve("POST" if _overriding(scope, headers) else scope["method"], path)


def is_safe(scope: Scope, headers: RequestHeaders) -> bool:
    """Whether the upstream only reads for it, so that it may be sent twice: GET and HEAD, where
    nothing makes another method of them.
    """
    return scope["method"] in ("GET", "HEAD") and not _overriding(scope, headers)


def _overriding(scope: Scope, headers: RequestHeaders) -> method_override.Headers:
    if scope["method"] == "POST":
        return ()
    query = text(scope["query_string"])
    return method_override.overriding(scope["method"], headers.read, query)


async def read(
    bodies: Bodies,
    held: Held,
    body: bytes,
    headers: RequestHeaders,
    endpoint: Endpoint | None,
    limit: int,
) -> BodyAttributes:
    """What the body says that matters to the policy. Raises BodiesFull."""
    content_type = agreed(headers.all(b"content-type"))
    coding = ", ".join(headers.all(b"content-encoding"))
    return await bodies.read(held, body, content_type, coding, endpoint, limit, AT_ONCE)


def about_key(scope: Scope, path: str, headers: RequestHeaders, api_key: str) -> CheckKeyRequest:
    """The question whether the request's key is in force, before its body is read."""
    told = [*headers.ours, *_overriding(scope, headers)]
    question = CheckKeyRequest(
        headers=[Header(name=name, value=value) for name, value in told],
        method=scope["method"],
        path=path,
    )
    if api_key and not any(name == KEY_HEADER for name, _ in headers.ours):
        question.key = api_key
    return question


def ask(
    scope: Scope, path: str, headers: RequestHeaders, facts: BodyAttributes | None, api_key: str
) -> EvaluateRequest:
    """The question. `facts` are None out of scope; `api_key` is used where the client sent none."""
    told = [*headers.ours, *_overriding(scope, headers)]
    question = EvaluateRequest(
        headers=[Header(name=name, value=value) for name, value in told],
        method=scope["method"],
        path=path,
        user_agent=headers.first(b"user-agent")[:MAX_REMARK],
        organization=headers.first(b"openai-organization")[:MAX_REMARK],
        request_id=headers.first(b"x-request-id")[:MAX_REMARK],
    )
    if scope["client"]:
        question.source_ip = scope["client"][0]
    if api_key and not any(name == KEY_HEADER for name, _ in headers.ours):
        question.key = api_key
    if facts is not None:
        put_facts(question, facts)
    return question
