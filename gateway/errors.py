"""The gateway's own answers, in the shape of OpenAI's errors: CONTRACT.md, sections 4 and 5."""

import json
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from gateway.headers import CONTENT_LENGTH, exact

Send = Callable[[dict[str, Any]], Awaitable[None]]

_HEADERS = (
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "OPTIONS,POST,GET"),
    ("Content-Type", "application/json"),
)
_DATE = exact("Date")


class Reply:
    """A whole response that is not the upstream's."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self._status = status
        self._headers = [(exact(name), value.encode("latin-1")) for name, value in headers]
        self._body = body

    async def send(self, send: Send) -> None:
        """Send it: its own headers first, in their order and letter case."""
        start = {
            "type": "http.response.start",
            "status": self._status,
            "headers": [*self._headers, *self._closing_headers()],
        }
        await send(start)
        await send({"type": "http.response.body", "body": self._body})

    def raw(self) -> bytes:
        """It as bytes on the wire, for a connection that is closed after it."""
        headers = [*self._headers, *self._closing_headers(), (b"Connection", b"close")]
        lines = [b"%s: %s" % pair for pair in headers]
        # Clients go by the number; a reason phrase is optional.
        return b"\r\n".join([b"HTTP/1.1 %d " % self._status, *lines, b"", self._body])

    def _closing_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (_DATE, _date(int(time.time()))), (CONTENT_LENGTH, b"%d" % len(self._body))


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def error(status: int, kind: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """An error of the gateway's own. The message names the cause and the mend."""
    content = {"message": f"Usage Panda: {message}", "type": kind, "param": None, "code": None}
    body = json.dumps({"error": content}, separators=(",", ":")).encode()
    return Reply(status, (*_HEADERS, *headers), body)


_RETRY = (("Retry-After", "1"),)

PREFLIGHT = Reply(200, (("Access-Control-Allow-Headers", "*, Authorization"), *_HEADERS[1:]), b"{}")
NOT_HTTP = error(
    400,
    "invalid_request",
    "The request is not well-formed HTTP/1.1. Check its request line, its headers and how its "
    "body's length is given: by Content-Length or by Transfer-Encoding, never by both",
)
BAD_PATH = error(
    400,
    "invalid_request",
    "The request names no path. Send a path that begins with /, such as /v1/chat/completions",
)
OUTSIDE = error(
    400,
    "invalid_request",
    "The request's path leads out of the upstream API's own path. Send a path without dot segments",
)
BAD_HEADER = error(
    400,
    "invalid_request",
    "A header's value is not UTF-8, so it cannot be passed on as it came. Encode it in UTF-8",
)
BAD_LENGTH = error(
    400,
    "invalid_request",
    "The request body is not as long as its Content-Length header says. Send the length of what "
    "is sent",
)
HEAD_TOO_LARGE = error(
    431,
    "invalid_request",
    "The request's path or headers are too large. Send shorter ones",
)
WEBSOCKET = error(
    501,
    "invalid_request",
    "This gateway does not pass WebSocket connections on, because no policy can see into them. "
    "Send the request over HTTP, with stream: true for a stream",
)
NO_DECISION = error(
    503,
    "server_error",
    "The policy service gave no decision in time, so the request was not sent upstream. "
    "Try again; if it lasts, ask the gateway's operator whether policyd runs and can be reached",
    _RETRY,
)
STOPPING = error(
    503, "server_error", "The gateway is being stopped. Try again; another may answer", _RETRY
)
FAULT = error(
    500,
    "server_error",
    "The gateway failed on this request. Its log says how; ask its operator to report it",
)
UNREACHABLE = error(
    502,
    "server_error",
    "The upstream API cannot be reached. Try again; if it lasts, ask the gateway's operator to "
    "check the upstream's address and the network",
)
BROKE_OFF = error(
    502,
    "server_error",
    "The upstream API closed the connection before it answered, or answered with something other "
    "than HTTP. Try again; if it lasts, the gateway's log says more",
)
SLOW_TO_CONNECT = error(
    504,
    "server_error",
    "The upstream API took too long to accept a connection. Try again; if it lasts, ask the "
    "gateway's operator to check the upstream and --connect-timeout",
)
SLOW_TO_ANSWER = error(
    504,
    "server_error",
    "The upstream API took too long to begin its answer. Try again, or ask the gateway's operator "
    "to raise --read-timeout",
)
