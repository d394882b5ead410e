"""Kept-alive connections to one address over HTTP/1.1. Of the client, only this module and
http_unread.py use aiohttp.

aiohttp is loaded when the first pool is made, as the client over gRPC does without it.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from ssl import SSLContext
from typing import TYPE_CHECKING, NamedTuple

from policyd.extras import lacks

if TYPE_CHECKING:
    from aiohttp import ClientResponse

MOST = 256
"""Connections of a pool, at most. Evaluations travel together, so few are needed, except for calls
that wait for a revision."""
_LARGEST = 4 * 2**20
"""Bytes that an answer may have, as over gRPC."""
_TOO_LARGE = "its answer is too large"
_OK = 200
_PLAIN = "identity"
_KEPT = 30.0
"""Seconds that an idle connection is kept: less than policyd keeps it."""


class Reply(NamedTuple):
    """A whole HTTP response, and its Content-Type."""

    status: int
    kind: str
    body: bytes


class Unreachable(Exception):
    """No connection was made, or what answers there speaks no HTTP."""


class Lost(Exception):
    """A connection was lost before the whole answer had come."""


class Foreign(Exception):
    """The response is not one that policyd sends. The message says why."""


def check_installed() -> None:
    """Raises ValueError where aiohttp is not installed."""
    try:
        import aiohttp  # noqa: F401  # Only to see whether it is there.
    except ModuleNotFoundError:
        raise ValueError(f"to ask policyd over HTTP {lacks('aiohttp', 'http')}") from None


class Pool:
    """Connections to `origin`, such as http://policyd:8082. Each request has the `headers`. Of a
    name with several addresses, one that does not connect within `patience` seconds gives way to
    the next. Belongs to the event loop that it is made in.
    """

    def __init__(
        self, origin: str, context: SSLContext | None, headers: Mapping[str, str], patience: float
    ) -> None:
        # Not at the top: see the docstring of the module.
        import aiohttp
        from yarl import URL

        from policyd.client.http_leftovers import CleanRequest

        self._url = URL(origin)
        self._urls: dict[str, URL] = {}
        self.has_answered = False
        """Whether a response has come. Until then the pool keeps no connection."""
        self._users = 0
        self._is_retired = False
        self._closing: asyncio.Task[None] | None = None
        connector = aiohttp.TCPConnector(
            limit=MOST,
            keepalive_timeout=_KEPT,
            happy_eyeballs_delay=patience,
            ssl=context or True,
        )
        # What goes beyond a plain request is switched off: policyd needs none of it, and what
        # answers in its place might use it.
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=CleanRequest,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )
        self._unreachable_errors = (aiohttp.ClientConnectorError, aiohttp.ClientResponseError)
        self._any_error = aiohttp.ClientError

    async def exchange(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """POST `body`, or GET where there is none. Raises Unreachable, Lost or Foreign, and
        RuntimeError where the pool is closed."""
        url = self._urls.get(path) or self._urls.setdefault(path, self._url.with_path(path))
        method = "GET" if body is None else "POST"
        self._users += 1
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                found = await _body(response)
                self.has_answered = True
                return Reply(response.status, response.content_type, found)
        except self._unreachable_errors as problem:
            raise Unreachable(str(problem)) from None
        except (self._any_error, OSError) as problem:
            raise Lost(str(problem) or type(problem).__name__) from None
        finally:
            self._users -= 1
            if self._is_retired and not self._users:
                self._close_soon()

    def retire(self) -> None:
        """Close the pool once no call uses it. New calls must not be made on it."""
        self._is_retired = True
        if not self._users:
            self._close_soon()

    async def close(self) -> None:
        """Close all connections. Calls under way raise Lost."""
        if self._closing is not None:
            with suppress(asyncio.CancelledError):
                await self._closing
        await self._session.close()

    @property
    def is_closed(self) -> bool:
        """Whether the pool was retired, and has closed its connections."""
        return self._closing is not None and self._closing.done()

    def _close_soon(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._session.close())


async def _body(response: "ClientResponse") -> bytes:
    if response.status == _OK:
        _check_framing(response.headers)
    if (response.content_length or 0) > _LARGEST:
        raise Foreign(_TOO_LARGE)
    pieces, size = [], 0
    while piece := await response.content.readany():
        size += len(piece)
        if size > _LARGEST:
            raise Foreign(_TOO_LARGE)
        pieces.append(piece)
    return b"".join(pieces)


def _check_framing(headers: Mapping[str, str]) -> None:
    """Raises Foreign for an answer that might be read as another message: one that ends with its
    connection, as it may be cut off, and one that something on the way has encoded. policyd sends
    neither."""
    if (
        "Content-Length" not in headers
        and headers.get("Transfer-Encoding", "").lower() != "chunked"
    ):
        raise Foreign("its answer does not say where it ends")
    if headers.get("Content-Encoding", _PLAIN) != _PLAIN:
        raise Foreign("its answer is encoded")
