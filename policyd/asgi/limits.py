"""The bounds of a listener's connections: connections.py keeps them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a listener's connections."""

    connections: int
    """Number of connections."""
    head: float
    """Seconds for a request's head, from the connection's beginning or the head's first byte."""
    body: float
    """Seconds for a body that is held; one that is streamed has to keep MIN_PACE over this time."""
    idle: float
    """Seconds between two requests: longer than clients keep their connections."""
    write: float
    """Seconds for a client to read some more of its answer."""
    unread: int
    """Bytes of answers that wait for clients which do not read, of all connections together."""
    ahead: int = 0
    """Bytes that the application may hold for each of these clients in addition."""
