"""Requests that no leftover of an earlier response can answer.

aiohttp hands a kept connection to the next request, whatever has arrived on it since its last
response. A peer that sends a second response unasked, as a confused proxy does, would decide the
next request by the answer to another one.
"""

from collections.abc import Coroutine
from typing import Any

from aiohttp import ClientRequest, ClientResponse, ServerDisconnectedError
from aiohttp.connector import Connection


class CleanRequest(ClientRequest):
    """A request that is sent only on a connection without unread bytes."""

    def send(self, conn: Connection) -> Coroutine[Any, Any, ClientResponse]:
        """See ClientRequest. Raises ServerDisconnectedError where the connection is of no use."""
        protocol = conn.protocol
        if protocol is None or protocol.should_close:
            raise ServerDisconnectedError("the connection holds what no request asked for")
        return super().send(conn)
