"""The upstream API: sends requests to it and gives its answers, streaming both unchanged."""

import asyncio
import re
from collections.abc import Callable

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from gateway import replies
from gateway.breaker import Breaker, UpstreamDown
from gateway.connection import SlowToTake
from gateway.connector import Attempt, Connector, is_own_fault
from gateway.headers import RequestHeaders, read_response
from gateway.settings import READ_AHEAD, Settings
from gateway.upstream_path import UpstreamPath
from gateway.upstream_url import KEY_HEADERS
from gateway.whole_body import WholeBody
from policyd.asgi.body import ClientGone, Incoming
from policyd.asgi.reply import NO_ROOM, Reply, Send
from policyd.descriptor.body_memory import SMALL
from policyd.descriptor.pieces import Pieces

# aiohttp would add these where the client sent none.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_KEY_HEADERS = frozenset(map(str.lower, KEY_HEADERS))
_MAX_HEADER = 64 * 1024
_PIECE = 64 * 1024
"""Bytes of an answer that are passed on at once, at the most."""
_ILLEGAL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class UpstreamFailed(Exception):
    """The upstream gave no answer. `reply` is the gateway's answer to the client.

    Where it `is_known`, one line of the log stands for many such requests.
    """

    def __init__(self, reply: Reply, cause: object, *, is_known: bool = False) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.reply = reply
        self.is_known = is_known


class UpstreamBroke(Exception):
    """The upstream broke off in the middle of its answer."""


class WrongLength(Exception):
    """The body is not as long as the client's Content-Length header announces."""


class Upload(aiohttp.payload.Payload):
    """A request body that is streamed: it goes upstream while it comes from the client.

    `begun` is what was read already. While what was taken of the body is small, it is kept, so that
    it can be sent again.
    """

    def __init__(self, incoming: Incoming, length: int | None, begun: Pieces) -> None:
        super().__init__(None)
        self._incoming = incoming
        self._length = length
        self._begun = begun
        self.is_whole = True
        """Whether all that was taken of it so far is kept."""
        self.problem: ClientGone | WrongLength | None = None
        self.finished = asyncio.Event()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Not possible, as the body has yet to come. See aiohttp.payload.Payload."""
        raise TypeError("an upload cannot be decoded")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """See aiohttp.payload.Payload."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write the body as it comes. Raises ClientGone or WrongLength where it ends too early, so
        that the request never ends as if it were complete."""
        self._consumed = True  # aiohttp itself must never send it again.
        written = len(self._begun)
        for piece in self._begun:
            await writer.write(piece)
        while self._incoming.more:
            chunk = await self._next(written)
            written += len(chunk)
            if chunk:
                await writer.write(chunk)
        if self._length is not None and written != self._length:
            self.problem = WrongLength()
            raise self.problem
        self.finished.set()

    async def _next(self, written: int) -> bytes:
        try:
            chunk = await self._incoming.piece()
        except ClientGone as problem:
            self.problem = problem
            raise
        self.is_whole = self.is_whole and written + len(chunk) <= SMALL
        if self.is_whole:
            self._begun.add(chunk)
        else:
            self._begun = Pieces()
        return chunk


Body = bytes | WholeBody | Upload | None


class Answer:
    """The upstream's response: its head is here, its body is still to come."""

    def __init__(self, response: aiohttp.ClientResponse, has_body: bool) -> None:
        self._response = response
        self._has_body = has_body

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self._response.status

    def header(self, name: str) -> str:
        """The first value of a header, or an empty string."""
        value = self._response.headers.get(name, "")
        # aiohttp gives bytes that are not UTF-8 as lone surrogates, which no message can hold.
        return value if value.isascii() else value.encode(errors="replace").decode()

    async def relay(self, send: Send, note: Callable[[bytes], None]) -> None:
        """Send it to the client, each piece as it comes, and call `note` with each piece sent.

        Raises UpstreamBroke.
        """
        response = self._response
        headers = read_response(response.raw_headers, self._has_body)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        content = response.content
        more = True
        while more:
            try:
                chunk = await content.read(_PIECE)
            except (aiohttp.ClientError, OSError) as problem:
                raise UpstreamBroke(str(problem) or type(problem).__name__) from None
            more = not content.at_eof()
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
            note(chunk)

    def close(self) -> None:
        """Close the connection, unless the body is complete: then the pool keeps it."""
        self._response.close()


class Upstream:
    """The API whose URL the settings give. Belongs to the event loop that it is made in."""

    def __init__(self, settings: Settings) -> None:
        url = URL(settings.upstream)
        self._scheme, self._authority = url.scheme, url.raw_authority
        self.prefix = UpstreamPath(url.raw_path.rstrip("/"))
        self._key = settings.upstream_api_key
        self._key_header = settings.key_header
        self._breaker = Breaker(settings.breaker, asyncio.get_running_loop().time)
        self._session = aiohttp.ClientSession(
            connector=Connector(settings.timeouts, self._breaker),
            # connection.py has the other time-outs.
            timeout=aiohttp.ClientTimeout(total=None, sock_read=settings.read_timeout),
            read_bufsize=READ_AHEAD,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NOT_ADDED,
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
        )
        # aiohttp would send PUT and DELETE again, although the upstream may have received them.
        self._session._retry_connection = False

    @property
    def is_down(self) -> bool:
        """Whether no new connections are made to it for now."""
        return self._breaker.is_open

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def ask(
        self, method: str, path: str, query: str, headers: RequestHeaders, body: Body, *, safe: bool
    ) -> Answer:
        """Send a request for the absolute `path`, and wait for the head of the answer.

        `safe` says that it only makes the upstream read, so that it may be sent again. Raises
        UpstreamFailed, or ClientGone where the client broke off its upload.
        """
        url, sent = self._url(path, query), self._headers(headers)
        for is_second in (False, True):
            with Attempt(is_second=is_second) as attempt:
                try:
                    response = await self._send(method, url, sent, body)
                    break
                except _FAILURES as problem:
                    if _is_over(problem, body) or not await attempt.may_be_repeated(is_safe=safe):
                        raise _failed(problem, body) from None
        if not _is_sound(response):
            response.close()
            raise UpstreamFailed(replies.BROKE_OFF, "its answer is not HTTP that can be passed on")
        return Answer(response, method != "HEAD" and response.status not in (204, 304))

    async def _send(
        self, method: str, url: URL, headers: CIMultiDict[str], body: Body
    ) -> aiohttp.ClientResponse:
        return await self._session.request(
            method, url, headers=headers, data=body, allow_redirects=False
        )

    def _url(self, path: str, query: str) -> URL:
        return URL.build(
            scheme=self._scheme,
            authority=self._authority,
            path=path,
            query_string=query,
            encoded=True,  # Path and query are used as given: not quoted, unquoted or resolved.
        )

    def _headers(self, headers: RequestHeaders) -> CIMultiDict[str]:
        spelled: dict[str, str] = {}
        # aiohttp would send only the last of repeats that differ in letter case.
        pairs = [
            (spelled.setdefault(name.lower(), name), value) for name, value in headers.forwarded
        ]
        if self._key:
            # Some upstreams read an underscore as a dash.
            pairs = [
                pair for pair in pairs if pair[0].lower().replace("_", "-") not in _KEY_HEADERS
            ]
            scheme = "Bearer " if self._key_header == "Authorization" else ""
            pairs.append((self._key_header, scheme + self._key))
        return CIMultiDict(pairs)


def _is_over(problem: Exception, body: Body) -> bool:
    """Whether the gateway or the client gave up, so that sending again would not help."""
    if isinstance(problem, TimeoutError):
        return True
    return isinstance(body, Upload) and (body.problem is not None or not body.is_whole)


def _is_sound(response: aiohttp.ClientResponse) -> bool:
    """Whether uvicorn can pass it on: it does not write headers that break a client's parser."""
    return 200 <= response.status <= 599 and not any(
        _ILLEGAL.search(value) for _, value in response.raw_headers
    )


_FAILURES = (aiohttp.ClientError, OSError, ValueError, UpstreamDown)


def _failed(problem: Exception, body: Body) -> UpstreamFailed | ClientGone:
    if isinstance(body, Upload) and isinstance(body.problem, ClientGone):
        return body.problem
    if isinstance(body, Upload) and isinstance(body.problem, WrongLength):
        return UpstreamFailed(replies.BAD_LENGTH, "the client's Content-Length is wrong")
    if isinstance(problem, UpstreamDown):
        again = ("Retry-After", str(problem.retry_after))
        return UpstreamFailed(replies.DOWN.with_headers([again]), problem, is_known=True)
    if is_own_fault(problem):
        return UpstreamFailed(NO_ROOM, problem)
    for kind, reply in _REPLIES:
        if isinstance(problem, kind):
            return UpstreamFailed(reply, problem)
    return UpstreamFailed(replies.BROKE_OFF, problem)


_REPLIES = (
    (aiohttp.ConnectionTimeoutError, replies.SLOW_TO_CONNECT),
    (SlowToTake, replies.SLOW_TO_TAKE),
    (asyncio.TimeoutError, replies.SLOW_TO_ANSWER),
    (aiohttp.ClientConnectorError, replies.UNREACHABLE),
)
