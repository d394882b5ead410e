"""When a request that was sent on a connection which the upstream closed may be sent again.

An upstream closes idle connections, and a request may be on its way just then. The law: the gateway
sends a request again only where the upstream cannot have received it, because an upstream may have
acted on what it received. (GET and HEAD only read: they may always be sent again.) The gateway
learns from its own system's TCP whether the upstream received the request:

- Bytes that were never handed to the system have reached no upstream.
- Each TCP segment of the upstream says how many of our bytes its machine has received. Where the
  segment that ended the connection (FIN) confirms none of the request, nothing of the request had
  arrived when the upstream closed: neither it nor a server behind it had anything to read.
- An upstream that has closed for good never reads what arrives later: its machine discards it and
  answers with a reset (RST). One that has ended only its own side can still read it, and its
  machine confirms it then. So the gateway waits for either: after a reset it may send the request
  again; after a confirmation, or where neither comes in time, it may not.
- A reset without a FIN before it proves nothing: an upstream that dies in the middle of its work
  resets, too, and a reset does not reliably say how much had been received.

So the gateway may report an error where it could have sent the request again, but it never sends
again what the upstream may have received. Systems other than Linux do not report this; there, the
gateway sends only GET and HEAD again.
"""

import asyncio
import os
import socket
import struct
import sys
from typing import NamedTuple, Protocol, Self

_SIZE = 256
"""Bytes to ask for: more than struct tcp_info has."""
_CLOSED = 7
"""TCP_CLOSE: the connection has been reset."""
_LONG, _INT = struct.Struct("=Q"), struct.Struct("=I")
# Offsets in struct tcp_info of linux/tcp.h.
_AT_CONFIRMED = 120  # tcpi_bytes_acked
_AT_WAITING = 144  # tcpi_notsent_bytes
_AT_SENT = 200  # tcpi_bytes_sent
_WAITS = (0.0, 0.002, 0.01, 0.05, 0.2, 0.75)
"""Seconds before each look at whether the upstream's machine has answered."""


class Connected(Protocol):
    """A connected socket, as far as this module needs it."""

    def fileno(self) -> int:
        """Its file descriptor; -1 where it is closed."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """The value of an option."""


class Progress(NamedTuple):
    """How far the bytes sent on a connection have come, counted from its beginning."""

    sent: int
    """Bytes handed to the system, which counts those that it sends again once more."""
    confirmed: int
    """Bytes that the other machine has confirmed; the connection's beginning counts as one."""
    is_reset: bool

    @classmethod
    def of(cls, connected: Connected | None) -> "Progress | None":
        """The progress of a socket; None where the system does not report it."""
        if connected is None or sys.platform != "linux":
            return None
        try:
            info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
        except OSError:
            return None  # The socket is closed, or not TCP.
        if len(info) < _AT_SENT + _LONG.size:
            return None  # An old kernel.
        (confirmed,) = _LONG.unpack_from(info, _AT_CONFIRMED)
        (waiting,) = _INT.unpack_from(info, _AT_WAITING)
        (sent,) = _LONG.unpack_from(info, _AT_SENT)
        return cls(sent + waiting, confirmed, info[0] == _CLOSED)


class Delivery:
    """The delivery of one request. Make it before the request's first byte is sent, and close it:
    it may hold a file descriptor."""

    __slots__ = ("_before", "_kept", "_was_sent")

    def __init__(self, connected: Connected | None) -> None:
        before = Progress.of(connected)
        # A system that counts has counted the connection's beginning by now.
        self._before = before if before and before.confirmed else None
        self._kept: socket.socket | None = None
        self._was_sent = True

    def lose(self, connected: Connected | None, *, has_ended: bool) -> None:
        """Note that the connection is lost, while its socket is still open. `has_ended` says that
        the upstream ended it (FIN), and did not only reset it.
        """
        now = Progress.of(connected)
        if now is None or self._before is None:
            return
        self._was_sent = now.sent != self._before.sent
        if self._was_sent and has_ended and now.confirmed == self._before.confirmed:
            assert connected is not None
            self._kept = socket.socket(fileno=os.dup(connected.fileno()))

    async def has_failed(self) -> bool:
        """Whether it is certain that the upstream received nothing of the request, and never will.

        Takes about a second at most.
        """
        if not self._was_sent:
            return True
        for seconds in _WAITS if self._kept else ():
            await asyncio.sleep(seconds)
            now = Progress.of(self._kept)
            if now is None or self._before is None or now.confirmed != self._before.confirmed:
                return False
            if now.is_reset:
                return True
        return False

    def close(self) -> None:
        """Close the copy of the connection's file descriptor, if there is one."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    # Written out: contextlib's base class has no __slots__ in Python 3.11, and so costs a __dict__.
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
