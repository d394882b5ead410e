"""A whole HTTP response, to the byte, and the errors that have OpenAI's shape."""

import random
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from policyd.engine import denial
from policyd.v1.policy_pb2 import EvaluateResponse

Send = Callable[[dict[str, Any]], Awaitable[None]]

HEADERS = denial.HEADERS
"""The headers of an error: docs/contract.md, section 4."""
AGAIN = 3
"""Seconds over which clients that should try again are spread, so that not all come at once."""


class HeaderName(bytes):
    """A header's name that goes out in its own letter case. The server would lower it."""

    __slots__ = ()

    def lower(self) -> "HeaderName":
        """The name as it is."""
        return self


class _FramingName(HeaderName):
    """One that the server has to recognize all the same, as it counts the body's bytes by it."""

    __slots__ = ()
    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes) and bytes.lower(self) == bytes.lower(other)


CONTENT_LENGTH = _FramingName(b"Content-Length")


# An upstream has a few dozen names, and the project's own replies have fewer still.
@lru_cache(maxsize=1024)
def exact(name: bytes) -> HeaderName:
    """The header name `name`, to be sent in its own letter case."""
    return _FramingName(name) if name.lower() == b"content-length" else HeaderName(name)


_DATE = exact(b"Date")
_REQUEST_ID = exact(b"x-request-id")
_RETRY_AFTER = exact(b"Retry-After")


class Reply:
    """A whole response. The last of its headers is `request_id`, where there is one.

    With `retry_after`, each sending asks the client to try again after a random number of seconds,
    at most that many.
    """

    __slots__ = ("_body", "_headers", "_request_id", "_retry_after", "_status")

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        request_id: str = "",
        retry_after: int = 0,
    ) -> None:
        self._status = status
        self._retry_after = retry_after
        self._headers = [
            (exact(name.encode("latin-1")), value.encode("latin-1")) for name, value in headers
        ]
        self._body = body
        self._request_id = request_id.encode("latin-1")

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self._status

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return len(self._body)

    def with_headers(self, headers: Iterable[tuple[str, str]], request_id: str = "") -> "Reply":
        """The same reply with more headers after its own, and with this `request_id` only."""
        own = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._headers]
        return Reply(self._status, [*own, *headers], self._body, request_id, self._retry_after)

    async def send(self, send: Send) -> None:
        """Send it: its own headers first, in their order and letter case."""
        start = {
            "type": "http.response.start",
            "status": self._status,
            "headers": [*self._headers, *self._last_headers()],
        }
        await send(start)
        await send({"type": "http.response.body", "body": self._body})

    def raw(self) -> bytes:
        """The reply as bytes on the wire, for a connection that is closed after it."""
        headers = [*self._headers, *self._last_headers(), (b"Connection", b"close")]
        lines = [b"%s: %s" % pair for pair in headers]
        # Clients go by the number; a reason phrase is optional.
        return b"\r\n".join([b"HTTP/1.1 %d " % self._status, *lines, b"", self._body])

    def _last_headers(self) -> list[tuple[bytes, bytes]]:
        seconds = random.randint(1, self._retry_after) if self._retry_after else 0  # noqa: S311  # It keeps no secret.
        again = [(_RETRY_AFTER, b"%d" % seconds)] if seconds else []
        date = (_DATE, _date(int(time.time())))
        length = (CONTENT_LENGTH, b"%d" % len(self._body))
        # OpenAI's clients show it as the error's request_id.
        identifier = [(_REQUEST_ID, self._request_id)] if self._request_id else []
        return [*again, date, length, *identifier]


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def error(
    status: int,
    kind: str,
    message: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    retry_after: int = 0,
) -> Reply:
    """An error of the server's own. The message names the cause and the fix."""
    rendered = denial.render(status, (message,), kind)
    return Reply(status, (*rendered.headers, *headers), rendered.body, retry_after=retry_after)


def denied(answer: EvaluateResponse, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """The denial of policyd's answer, with `headers` after its own."""
    given = answer.denial
    own = [(header.name, header.value) for header in given.headers]
    return Reply(given.http_status, (*own, *headers), given.body, answer.decision_id)


NOT_HTTP = error(
    400,
    "invalid_request",
    "The request is not well-formed HTTP/1.1. Check its request line, its headers and how its "
    "body's length is given: by Content-Length or by Transfer-Encoding, never by both",
)
HEAD_TOO_LARGE = error(
    431,
    "invalid_request",
    "The request's path or headers are too large. Send shorter ones",
)
TOO_SLOW = error(
    408,
    "invalid_request",
    "The request did not come in time. Send it again, without pauses; if the network is slow, ask "
    "the gateway's operator to raise --head-timeout or --body-timeout",
)
NO_DECISION = Reply(
    denial.UNDECIDED.status, denial.UNDECIDED.headers, denial.UNDECIDED.body, retry_after=AGAIN
)
NO_ROOM = error(
    503,
    "server_error",
    "There are as many connections as there may be. Try again; if it lasts, ask the gateway's "
    "operator to raise --max-connections, and the process's limit of open files",
    retry_after=AGAIN,
)
WEBSOCKET = Reply(denial.WEBSOCKET.status, denial.WEBSOCKET_HEADERS, denial.WEBSOCKET.body)
