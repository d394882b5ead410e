"""How long the upstream may keep a request waiting."""

from typing import NamedTuple


class Patience(NamedTuple):
    """Seconds that the upstream may take."""

    connect: float
    """For a new connection: its name looked up, and its TLS handshake over."""
    send: float
    """To take some more of the request."""
    first_byte: float
    """From the request's end to that of the answer's head."""
    read: float
    """Between two pieces of the answer."""
