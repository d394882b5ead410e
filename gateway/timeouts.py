"""The time-outs of a request to the upstream."""

from typing import NamedTuple


class Timeouts(NamedTuple):
    """Seconds that the upstream may take for each step."""

    connect: float
    """For a new connection, with its name lookup and its TLS handshake."""
    send: float
    """To receive some more of the request."""
    first_byte: float
    """From the end of the request to the end of the answer's head."""
    read: float
    """Between two pieces of the answer."""
