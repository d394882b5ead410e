"""uvicorn's HTTP/1.1, where a proxy needs it otherwise.

- Header names reach the app in their own letter case.
- What is not HTTP gets an answer in OpenAI's shape.
- An Upgrade is not followed, as a server may (RFC 9110, section 7.8). The parser would take the
  request's body for the other protocol, and Java's client offers h2c with every first request.
- A request's head has a bound, and its trailers, which count for nothing, have one too.
- A client that keeps the connection waiting is told so, and it ends: see connections.py.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from policyd.asgi.bounded import Bounded
from policyd.asgi.reply import HEAD_TOO_LARGE, NO_ROOM, NOT_HTTP, TOO_SLOW, Reply
from policyd.asgi.visit import State

MAX_HEAD = 256 * 1024
"""Bytes of a request line and its headers, with the empty line at their end."""
_HEAD_END = b"\r\n\r\n"
_PIECE = 16 * 1024
"""Bytes of a chunked body that are parsed at once: where its trailers begin is known so well."""

# Without one of these, which the parser takes for the same, Upgrade has no effect.
_CONNECTION = (b"connection", b"proxy-connection")


class _Http(HttpToolsProtocol):
    """One connection of a client, its time unbounded."""

    is_spare = False
    """Whether there is no room for it, but for a probe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread: int | None = 0
        """Bytes so far of a head, or of trailers, that are not complete; None within a body."""
        self._is_body = False
        self._body_left = 0
        """Bytes of a body of known length that are still to come."""
        self._tail = b""
        """The last three bytes of a head that is not complete."""
        self._begun = False
        """Whether a head has begun that is not complete."""
        self._is_boundary = False
        """Whether what was parsed last has ended within what the parser was fed."""
        self._is_deaf = False
        """Whether the rest of what the client sends is thrown away."""
        self._closes = False
        """Whether the connection ends with the request's body, as its answer has been given."""
        self._answering: Any = None
        """The request that the app is at work on; others may wait behind it."""
        self._task: asyncio.Task[None] | None = None
        """The app at work."""

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. Every request is told, not the last one alone."""
        super().connection_lost(exc)
        self._abandon()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unset_keepalive_if_required()
        view, begin = memoryview(data), 0
        while begin < len(data) and not (self._is_deaf or self.transport.is_closing()):
            if self._unread == MAX_HEAD:
                self._refuse(HEAD_TOO_LARGE)
                return
            begin += self._feed(view[begin : self._piece(data, begin)])

    def _piece(self, data: bytes, begin: int) -> int:
        """The end of what is parsed next: a head or a body, as far as it is there.

        What the parser is fed at once belongs to one of them, so that each is counted to the byte.
        """
        if self._unread is None:
            return begin + (self._body_left or _PIECE)
        if self._is_body:
            return begin + min(_PIECE, MAX_HEAD - self._unread)
        end = _head_end(self._tail, data, begin)
        self._tail = b"" if end else (self._tail + data[max(begin, len(data) - 3) :])[-3:]
        return min(end or len(data), begin + MAX_HEAD - self._unread)

    def _feed(self, data: memoryview | bytes) -> int:
        """Parse `data`. Returns how much of it is done with."""
        self._is_boundary = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._feed_without_upgrade()
            done: int = stopped.args[0]
            return done
        except httptools.HttpParserError:
            self._refuse(NOT_HTTP)
        else:
            if self._unread is not None and not self._is_boundary:
                self._unread += len(data)
        return len(data)

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self._is_body:
            return  # A trailer is no header: whoever stands before us has not seen it.
        lower = name.lower()
        if lower == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif lower == b"content-length":
            self._body_left = int(value)  # The parser has seen to it that this is a number.
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._unread = None
        self._is_body, self._begun = True, False
        # A fragment is in no other part of the scope, and a proxy may see a path in it.
        self.scope["has_fragment"] = b"#" in self.url  # type: ignore[typeddict-unknown-key]
        self.scope["is_spare"] = self.is_spare  # type: ignore[typeddict-unknown-key]
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            cycle: Any = self.cycle
            is_last = self.is_spare or self.is_last()
            cycle.keep_alive = cycle.keep_alive and not is_last
            if not cycle.keep_alive:
                cycle.transport = _Lingering(self)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._unread, self._tail = 0, b""
        self._is_body, self._body_left, self._is_boundary = False, 0, True
        if not self.parser.should_upgrade():
            super().on_message_complete()
            # uvicorn leaves it so where the answer was quicker than the body.
            self.cycle.more_body = False
            if self._closes:
                self.transport.close()

    def on_chunk_header(self) -> None:
        """See httptools. Behind the last chunk, trailers may come."""
        self._unread, self._is_boundary = 0, True

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unread = None
        self._body_left = max(self._body_left - len(body), 0)
        super().on_body(body)

    def is_last(self) -> bool:
        """Whether the request is to be the connection's last one."""
        return False

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        self._task = self.loop.create_task(cycle.run_asgi(app))
        self._task.add_done_callback(self.tasks.discard)
        self.tasks.add(self._task)

    def _feed_without_upgrade(self) -> None:
        """Parse the head once more, without its Connection header."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(NOT_HTTP)
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0].lower() not in _CONNECTION]
        if not self.parser.should_keep_alive():
            lines.append(b"Connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join([*lines, b"", b""]))

    def _refuse(self, reply: Reply) -> None:
        # A request under way sees that its connection is lost, and goes no further.
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or not cycle.response_started or cycle.response_complete:
            self.transport.write(reply.raw())
        self._abandon()
        self._is_deaf = True
        self.end_writing()

    def _abandon(self) -> None:
        """Tell the requests under way that their client no longer waits for answers."""
        self.pipeline.clear()
        for cycle in (self._answering, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def end_writing(self) -> None:
        """Say that no more comes, and wait for the client to say so, too.

        A client that is still sending when its connection is closed may never see the answer.
        """
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def linger(self) -> None:
        """Close the connection once the request is complete, whose answer is."""
        if self.cycle.more_body and not self.transport.is_closing():
            self._closes = True
            self.end_writing()
        else:
            self.transport.close()


class _Lingering:
    """A transport, as a request has it whose connection ends with it."""

    __slots__ = ("_protocol", "is_closing", "write")

    def __init__(self, protocol: _Http) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        """See asyncio.Transport."""
        self._protocol.linger()


class Protocol(Bounded, _Http):
    """One connection of a client."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.is_spare = self.visit.is_spare

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if not self.crowd.hold_head(self.visit, self._unread or 0) and not self._is_deaf:
            self._refuse(NO_ROOM)
            self.crowd.move(self.visit, State.CLOSING)

    def is_last(self) -> bool:
        """See _Http."""
        return self.crowd.is_ending

    def wind_down(self) -> None:
        """See Bounded. One that is idle may have a request on its way, so it stays for a while, as
        does one whose answer has begun, which has not said that it is the last."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

    def give_up(self, answered: bool) -> None:
        """See Bounded."""
        if self._task is not None and self._answering.response_started == answered:
            self._task.cancel()
            self._task = None

    def has_begun_head(self) -> bool:
        """See Bounded."""
        return self._begun

    def dismiss(self) -> None:
        """See Bounded."""
        if self.visit.state in (State.OPENING, State.HEAD, State.BODY):
            self._refuse(TOO_SLOW)
        else:
            self.transport.close()

    def has_refused(self) -> bool:
        """See Bounded."""
        return self._is_deaf


def _head_end(tail: bytes, data: bytes, begin: int) -> int:
    """Where the head ends that `tail` is the end of so far; 0 where `data` does not end it."""
    if tail:
        seam = (tail + data[begin : begin + 3]).find(_HEAD_END)
        if seam >= 0:
            return begin + seam + len(_HEAD_END) - len(tail)
    end = data.find(_HEAD_END, begin)
    return end + len(_HEAD_END) if end >= 0 else 0
