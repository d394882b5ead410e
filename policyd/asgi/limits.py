"""The bounds of a listener's connections: connections.py keeps them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a listener's connections."""

    connections: int = 10_000
    """Number of connections."""
    head: float = 10.0
    """Seconds for a request's head, from the connection's beginning or the head's first byte."""
    body: float = 120.0
    """Seconds for a body that is held; one that is streamed has to keep MIN_PACE over this time."""
    idle: float = 75.0
    """Seconds between two requests: longer than clients keep their connections."""
    write: float = 60.0
    """Seconds for a client to read some more of its answer."""
    unread: int = 256 * 2**20
    """Bytes of answers that wait for clients which do not read, of all connections together."""
    ahead: int = 0
    """Bytes that the application may hold for each of these clients in addition."""
