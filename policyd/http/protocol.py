"""uvicorn's HTTP/1.1, where a proxy needs it otherwise.

- Header names reach the app in their own letter case.
- What is not HTTP gets an answer in OpenAI's shape.
- An Upgrade is not followed, as a server may (RFC 9110, section 7.8). The parser would take the
  request's body for the other protocol, and Java's client offers h2c with every first request.
- A request's head has a bound, and its trailers, which count for nothing, have one too.
"""

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from policyd.http.reply import HEAD_TOO_LARGE, NOT_HTTP, Reply

MAX_HEAD = 256 * 1024
"""Bytes of a request line and its headers."""

# Without one of these, which the parser takes for the same, Upgrade has no effect.
_CONNECTION = (b"connection", b"proxy-connection")


class Protocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread: int | None = None
        """Bytes so far of a head, or of trailers, that are not complete."""
        self._is_body = False

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unset_keepalive_if_required()
        rest: bytes | None = data
        while rest is not None:
            rest = self._feed(rest)

    def _feed(self, data: bytes) -> bytes | None:
        """Parse `data`. Returns what is to be parsed in its place, where that is something else."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(NOT_HTTP)
        else:
            if self._unread is not None:
                self._unread += len(data)
                if self._unread > MAX_HEAD:
                    self._refuse(HEAD_TOO_LARGE)
        return None

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._unread = 0
        self._is_body = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self._is_body:
            return  # A trailer is no header: whoever stands before us has not seen it.
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._unread = None
        self._is_body = True
        # A fragment is in no other part of the scope, and a proxy may see a path in it.
        self.scope["has_fragment"] = b"#" in self.url  # type: ignore[typeddict-unknown-key]
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See httptools."""
        self._unread = None
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_chunk_header(self) -> None:
        """See httptools. Behind the last chunk, trailers may come."""
        self._unread = 0

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unread = None
        super().on_body(body)

    def _without_upgrade(self, rest: bytes) -> bytes | None:
        """The request once more, without its Connection header, and then `rest`."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(NOT_HTTP)
            return None
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0].lower() not in _CONNECTION]
        if not self.parser.should_keep_alive():
            lines.append(b"Connection: close")
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", rest])

    def _refuse(self, reply: Reply) -> None:
        # A request under way sees that its connection is lost, and goes no further.
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or not cycle.response_started or cycle.response_complete:
            self.transport.write(reply.raw())
        self.transport.close()
