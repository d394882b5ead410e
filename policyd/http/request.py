"""A request to --http: its headers by name, and its body within a bound."""

import asyncio
import hmac
import ipaddress
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from policyd.asgi.body import Incoming, Receive
from policyd.descriptor.body_memory import Held
from policyd.descriptor.headers import by_name
from policyd.descriptor.pieces import Pieces
from policyd.errors import BodiesFull

_ASCII = "".join(map(chr, range(0x80)))


class Request:
    """One request: `scope` and `receive` are ASGI's."""

    def __init__(self, scope: dict[str, Any], receive: Receive, patience: float) -> None:
        """The body has `patience` seconds to arrive."""
        self._patience = patience
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("latin-1")
        self.query = scope["query_string"].decode("latin-1")
        self.has_fragment: bool = scope["has_fragment"]
        self.is_spare: bool = scope["is_spare"]
        """Whether its connection is a spare one, on which only probes are answered."""
        self.scheme: str = scope["scheme"]
        self.headers = by_name(
            (name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t"))
            for name, value in scope["headers"]
        )
        self._incoming = Incoming(receive)

    def all(self, name: str) -> list[str]:
        """The values of a header, repeats kept."""
        return self.headers.get(name, [])

    def one(self, name: str) -> str:
        """The value of a header that was sent once, or else an empty string."""
        values = self.all(name)
        return values[0] if len(values) == 1 else ""

    def shows(self, token: str, *, bearer: bool) -> bool:
        """Whether it shows `token` in X-Policyd-Token or, with `bearer`, as a bearer token."""
        given = self.all("x-policyd-token")
        if bearer and not given:
            scheme, _, word = self.one("authorization").partition(" ")
            given = [word.strip()] if scheme.lower() == "bearer" else []
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), token.encode())

    @property
    def source_ip(self) -> str:
        """The client's address as the proxy that asks gives it: the last in X-Forwarded-For."""
        last = ",".join(self.all("x-forwarded-for")).rpartition(",")[2].strip()
        try:
            return str(ipaddress.ip_address(last))
        except ValueError:
            return ""

    async def body(self, limit: int, held: Held) -> Pieces | None:
        """The whole body, None where it is over `limit` bytes.

        Raises ClientGone, BodiesFull, or TimeoutError where it does not come in time.
        """
        body = Pieces()
        try:
            async with asyncio.timeout(self._patience):
                await self._incoming.take(body, limit, held)
        except BodiesFull:
            if self._incoming.received <= limit:
                raise
            return None  # It is always too large, so its client should not try again.
        return body if len(body) <= limit else None

    async def drain(self, limit: int) -> None:
        """Throw away what is left of the body, up to `limit` bytes. Raises ClientGone.

        A client that is still sending when its connection is closed may never see the answer.
        """
        if not self._incoming.more:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while limit > 0 and self._incoming.more:
                    limit -= len(await self._incoming.piece())


def printable(text: str) -> str:
    """What a header holds, with what lies outside ASCII percent-encoded."""
    return text if text.isascii() else quote(text, safe=_ASCII, encoding="latin-1")
