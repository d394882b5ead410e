"""A browser's connection, by uvicorn's h11, which bounds a request's head.

Whoever connects need not be signed in, and each connection is a file of the process that also ships
the decision log: nobody holds one for nothing, or too many.
"""

from uvicorn.protocols.http.h11_impl import H11Protocol

from policyd.asgi.bounded import Bounded
from policyd.asgi.connections import Limits

LIMITS = Limits(connections=200, head=10.0, body=10.0, idle=5.0, write=30.0)
"""What a browser does at once, or not at all."""


class Connection(Bounded, H11Protocol):
    """One connection."""

    def has_begun_head(self) -> bool:
        """See Bounded."""
        return bool(self.conn.trailing_data[0])
