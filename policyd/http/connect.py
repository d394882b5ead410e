"""PolicyService over HTTP/1.1, by the unary calls of the Connect protocol.

A call is a POST to /policyd.v1.PolicyService/METHOD, with the message as `application/proto` or
`application/json`, in which its answer comes, too. An error is JSON with Connect's code, and an
ErrorInfo as over gRPC. A call costs policyd less than half of what it costs over gRPC.
"""

import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2

from policyd.asgi.reply import Reply
from policyd.descriptor.headers import is_coded
from policyd.errors import InvalidArgument
from policyd.http.request import Request

_PROTO, _JSON = "application/proto", "application/json"
_DEPTH = 20
"""How deep the objects of a message in JSON may be nested."""
_MARKS = 2**16
"""Brackets, colons and commas that a message in JSON may have. Reading it takes as long as there
are many, up to about 0.2 s, and no other request is answered meanwhile. The message's bytes do not
matter: a large raw body is one value."""
_DIGITS = 10
"""Digits that Connect allows for a call's milliseconds."""
_DOMAIN = "policyd"
_STATUS = {
    "invalid_argument": 400,
    "failed_precondition": 400,
    "unauthenticated": 401,
    "not_found": 404,
    "already_exists": 409,
    "aborted": 409,
    "resource_exhausted": 429,
    "internal": 500,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
    "canceled": 499,
}
"""The HTTP status of each of Connect's codes that policyd gives."""


class Problem(NamedTuple):
    """An error as its caller gets it."""

    code: str
    """Connect's, such as `invalid_argument`."""
    message: str
    reason: str
    """The reason in its ErrorInfo; "": it has none."""


class Call:
    """A call, as a servicer sees it."""

    def __init__(self, request: Request) -> None:
        self._headers = request.headers
        given = request.one("connect-timeout-ms")
        has_end = given.isascii() and given.isdecimal() and len(given) <= _DIGITS
        self._end = time.monotonic() + int(given) / 1000 if has_end else None

    def time_remaining(self) -> float | None:
        """Seconds that the caller still waits. None: as long as it takes."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        """The headers as name and value."""
        return [(name, value) for name, values in self._headers.items() for value in values]


class Method(NamedTuple):
    """A method of the service."""

    message: type[Message]
    """The type of message that it takes."""
    answer: Callable[[Any, Call], Awaitable[Message]]


class Connect:
    """Answers calls of `methods`, which are keyed by path. `problem` says how to report an error
    that they raise."""

    def __init__(
        self, methods: Mapping[str, Method], problem: Callable[[Exception], Problem]
    ) -> None:
        self._methods = methods
        self._problem = problem

    def has(self, path: str) -> bool:
        """Whether `path` is that of a method."""
        return path in self._methods

    def rejects(self, request: Request) -> Reply | None:
        """The reply to what is no call, before its body is read."""
        if request.method != "POST":
            return Reply(405, [("Allow", "POST")], b"")
        if _type(request) not in (_PROTO, _JSON):
            return Reply(415, [("Accept-Post", f"{_PROTO}, {_JSON}")], b"")
        if is_coded(request.all("content-encoding")):
            return error(Problem("unimplemented", "send the message as it is, uncompressed", ""))
        return None

    async def answer(self, request: Request, body: bytes) -> Reply:
        """The reply to a call. Raises what the method raises, or InvalidArgument."""
        method, kind = self._methods[request.path], _type(request)
        message = _read(method.message, kind, body)
        found = await method.answer(message, Call(request))
        if kind == _PROTO:
            return Reply(200, [("Content-Type", _PROTO)], found.SerializeToString())
        text = json_format.MessageToJson(found, indent=None, ensure_ascii=False)
        return Reply(200, [("Content-Type", _JSON)], text.encode())

    def failed(self, raised: Exception) -> Reply:
        """The reply where answer(), or what came before it, raised this."""
        return error(self._problem(raised))


def error(problem: Problem) -> Reply:
    """The reply that reports an error."""
    content: dict[str, Any] = {"code": problem.code, "message": problem.message}
    if problem.reason:
        info = error_details_pb2.ErrorInfo(reason=problem.reason, domain=_DOMAIN)
        value = b64encode(info.SerializeToString()).rstrip(b"=").decode()
        content["details"] = [{"type": info.DESCRIPTOR.full_name, "value": value}]
    headers = [("Content-Type", _JSON)]
    return Reply(_STATUS[problem.code], headers, msgspec.json.encode(content))


def _type(request: Request) -> str:
    name, _, parameters = request.one("content-type").partition(";")
    is_plain = parameters.strip().lower() in ("", "charset=utf-8")
    return name.strip().lower() if is_plain else ""


def _read(message: type[Message], kind: str, body: bytes) -> Message:
    try:
        if kind == _PROTO:
            return message.FromString(body)
        _check_marks(body)
        return json_format.Parse(body, message(), max_recursion_depth=_DEPTH)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError):
        raise InvalidArgument("the request is not a message of this method") from None


def _check_marks(body: bytes) -> None:
    if len(body) > _MARKS and sum(map(body.count, (b"{", b"[", b":", b","))) > _MARKS:
        raise InvalidArgument(
            f"a message in JSON has at most {_MARKS} brackets, colons and commas: send one that "
            f"has more as {_PROTO}"
        )
