"""A browser's connection, by uvicorn's h11 protocol, which bounds a request's head.

A client needs no session to connect, and each connection is a file descriptor of the process that
also ships the decision log. So their number and their time are bounded tightly.
"""

from uvicorn.protocols.http.h11_impl import H11Protocol

from policyd.asgi.bounded import Bounded
from policyd.asgi.limits import Limits
from policyd.command.serving_settings import ANSWER_MEMORY

LIMITS = Limits(200, head=10.0, body=10.0, idle=5.0, write=30.0, unread=ANSWER_MEMORY)
"""Enough for browsers, which send a request without pauses."""


class Connection(Bounded, H11Protocol):
    """One connection of a browser."""

    def has_begun_head(self) -> bool:
        """See Bounded."""
        return bool(self.conn.trailing_data[0])
