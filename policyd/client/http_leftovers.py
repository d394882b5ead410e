"""Requests that no leftover can answer.

aiohttp hands a kept connection to the next request, whatever has arrived on it since its last
response. A peer that sends a second response unasked, as a confused proxy does, would so decide the
next request by what another one was answered.
"""

from collections.abc import Coroutine
from typing import Any

from aiohttp import ClientRequest, ClientResponse, ServerDisconnectedError
from aiohttp.connector import Connection


class CleanRequest(ClientRequest):
    """Is sent on a connection that holds nothing that was not read."""

    def send(self, conn: Connection) -> Coroutine[Any, Any, ClientResponse]:
        """See ClientRequest. Raises ServerDisconnectedError, as the connection is of no use."""
        protocol = conn.protocol
        if protocol is None or protocol.should_close:
            raise ServerDisconnectedError("the connection holds what no request asked for")
        return super().send(conn)
