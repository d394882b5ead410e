"""uvicorn's HTTP/1.1 protocol, with what a proxy and wire-exact replies need in addition.

The law: what the app sees is what the client sent, and what the client sees is what the app, or
reply.py, wrote; and a client learns why its connection ends wherever it can still read an answer.

- Header names reach the app in the client's letter case, because they go upstream in it. (uvicorn
  lowers them; reply.py keeps the letter case of the response's.)
- Bytes that are not HTTP are answered in the shape of OpenAI's errors, not in uvicorn's own.
- An Upgrade is ignored, as RFC 9110, section 7.8 allows. The parser would take the request's body
  for the other protocol, and Java's client offers h2c with every first request. So the head is
  parsed once more, without its Connection header.
- A head has a bound (MAX_HEAD), and the trailers of a body, which the app never sees, have the
  same. To count both to the byte, the parser is given at most one of head, body and trailers at a
  time: `_piece` finds where the next one ends.
- An answer that comes before the end of its request's body has to be readable: closing a connection
  with unread bytes resets it, and the client would lose the answer. So the server ends only its own
  side, discards what still comes (`_is_deaf`, `_Lingering`), and then closes.
- A client that keeps the connection waiting gets an answer that says so: connections.py decides
  when.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from policyd.asgi import reasons
from policyd.asgi.bounded import Bounded
from policyd.asgi.reply import HEAD_TOO_LARGE, NO_ROOM, NOT_HTTP, TOO_SLOW, Reply
from policyd.asgi.visit import State

reasons.pin()

MAX_HEAD = 256 * 1024
"""Bytes of a request line and its headers, with the empty line at their end."""
_HEAD_END = b"\r\n\r\n"
_PIECE = 16 * 1024
"""Bytes of a chunked body that are parsed at once, so that its trailers are noticed soon."""

# Without one of these headers, which the parser does not tell apart, Upgrade has no effect.
_CONNECTION = (b"connection", b"proxy-connection")


class _Http(HttpToolsProtocol):
    """One connection of a client, without deadlines."""

    is_spare = False
    """Whether there is no room for it, so that only probes are answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread: int | None = 0
        """Bytes so far of an incomplete head, or of incomplete trailers; None within a body."""
        self._is_body = False
        self._body_left = 0
        """Bytes of a body of known length that are still to come."""
        self._tail = b""
        """The last three bytes of an incomplete head."""
        self._begun = False
        """Whether there is an incomplete head."""
        self._is_boundary = False
        """Whether a head, body or chunk ended within the bytes that were parsed last."""
        self._is_deaf = False
        """Whether all that the client still sends is discarded."""
        self._closes = False
        """Whether the connection ends with the request's body, as its answer is complete."""
        self._answering: Any = None
        """The cycle of the request that the app serves; others may wait behind it."""
        self._task: asyncio.Task[None] | None = None
        """The task in which the app serves it."""

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. Every request learns of it, not only the last one."""
        super().connection_lost(exc)
        self._abandon()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unset_keepalive_if_required()
        view, begin = memoryview(data), 0
        while begin < len(data) and not (self._is_deaf or self.transport.is_closing()):
            if self._unread == MAX_HEAD:
                self._reject(HEAD_TOO_LARGE)
                return
            begin += self._feed(view[begin : self._piece(data, begin)])

    def _piece(self, data: bytes, begin: int) -> int:
        """Where the bytes end that are parsed next: a head or a body, as far as it has come."""
        if self._unread is None:
            return begin + (self._body_left or _PIECE)
        if self._is_body:
            return begin + min(_PIECE, MAX_HEAD - self._unread)
        end = _head_end(self._tail, data, begin)
        self._tail = b"" if end else (self._tail + data[max(begin, len(data) - 3) :])[-3:]
        return min(end or len(data), begin + MAX_HEAD - self._unread)

    def _feed(self, data: memoryview | bytes) -> int:
        """Parse `data`. Returns how many of its bytes were parsed."""
        self._is_boundary = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._feed_without_upgrade()
            done: int = stopped.args[0]
            return done
        except httptools.HttpParserError:
            self._reject(NOT_HTTP)
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
            return  # A trailer is no header: a proxy before us has not checked it.
        lower = name.lower()
        if lower == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif lower == b"content-length":
            self._body_left = int(value)  # The parser has checked that this is a number.
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._unread = None
        self._is_body, self._begun = True, False
        # ASGI's scope has no fragment, which a proxy before us may have read as part of the path.
        self.scope["has_fragment"] = b"#" in self.url  # type: ignore[typeddict-unknown-key]  # It is ours.
        self.scope["is_spare"] = self.is_spare  # type: ignore[typeddict-unknown-key]  # It is ours.
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
            # uvicorn leaves this true where the answer was complete before the body.
            self.cycle.more_body = False
            if self._closes:
                self.transport.close()

    def on_chunk_header(self) -> None:
        """See httptools. Trailers may follow the last chunk."""
        self._unread, self._is_boundary = 0, True

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unread = None
        self._body_left = max(self._body_left - len(body), 0)
        super().on_body(body)

    def is_last(self) -> bool:
        """Whether this request is the connection's last one."""
        return False

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        self._task = self.loop.create_task(cycle.run_asgi(app))
        self._task.add_done_callback(self.tasks.discard)
        self.tasks.add(self._task)

    def _feed_without_upgrade(self) -> None:
        """Parse the head again, without its Connection header."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._reject(NOT_HTTP)
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0].lower() not in _CONNECTION]
        if not self.parser.should_keep_alive():
            lines.append(b"Connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join([*lines, b"", b""]))

    def _reject(self, reply: Reply) -> None:
        # To a request under way it looks as if the client had left, so it stops.
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or not cycle.response_started or cycle.response_complete:
            self.transport.write(reply.raw())
        self._abandon()
        self._is_deaf = True
        self.end_writing()

    def _abandon(self) -> None:
        """Have the requests under way see that their client has left."""
        self.pipeline.clear()
        for cycle in (self._answering, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def end_writing(self) -> None:
        """End our side of the connection, and wait for the client to end its own.

        If we closed it while the client is still sending, the client might never see the answer.
        """
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def linger(self) -> None:
        """Close the connection, whose answer is complete, as soon as its request is complete."""
        if self.cycle.more_body and not self.transport.is_closing():
            self._closes = True
            self.end_writing()
        else:
            self.transport.close()


class _Lingering:
    """The transport of a connection's last request: closing it waits for the request's end."""

    __slots__ = ("_protocol", "is_closing", "write")

    def __init__(self, protocol: _Http) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        """See asyncio.Transport."""
        self._protocol.linger()


class Protocol(Bounded, _Http):
    """One connection of a client, with deadlines and bounds: see connections.py."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.is_spare = self.visit.is_spare

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if not self.crowd.hold_head(self.visit, self._unread or 0) and not self._is_deaf:
            self._reject(NO_ROOM)
            self.crowd.move(self.visit, State.CLOSING)

    def is_last(self) -> bool:
        """See _Http."""
        return self.crowd.is_ending

    def wind_down(self) -> None:
        """See Bounded. An idle connection stays for a while, as a request may be on its way. So
        does one whose answer has begun, because its head has not announced the connection's end."""
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
            self._reject(TOO_SLOW)
        else:
            self.transport.close()

    def has_rejected(self) -> bool:
        """See Bounded."""
        return self._is_deaf


def _head_end(tail: bytes, data: bytes, begin: int) -> int:
    """Where in `data` the head ends whose last bytes so far are `tail`; 0 where it does not end."""
    if tail:
        seam = (tail + data[begin : begin + 3]).find(_HEAD_END)
        if seam >= 0:
            return begin + seam + len(_HEAD_END) - len(tail)
    end = data.find(_HEAD_END, begin)
    return end + len(_HEAD_END) if end >= 0 else 0
