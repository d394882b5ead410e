"""What became of a request that was sent on a connection which the upstream closed.

An upstream closes connections that are idle, and a request may meet that on its way. To send it
again is right where the upstream cannot have had it, and only there: it may have been acted on.
What is known of that, the system's TCP knows:

- Bytes that were never handed to the system reached no one.
- Each segment of the upstream's says how far its machine has received our bytes. Where the one that
  ended the connection (FIN) confirms none of the request, none had come when the upstream closed:
  it had none to read, nor had what may stand behind it.
- To an upstream that has closed for good, what comes later is lost: its machine throws it away and
  answers with a reset (RST). An upstream that has only ended its own side could still read it; its
  machine confirms it then. So the answer is waited for: after a reset the request may be sent
  again, after a confirmation, or neither in time, it may not.
- A reset without an end before it says nothing: an upstream that dies in the middle of its work
  resets, too, and a reset does not tell reliably how far it has received.

So there are errors where sending again would have been right, never the reverse. Other systems than
Linux tell nothing of this; there, no request is sent again but those that may always be.
"""

import asyncio
import os
import socket
import struct
import sys
from typing import NamedTuple, Protocol, Self

_SIZE = 256
"""More than the system's answer has."""
_CLOSED = 7
"""TCP_CLOSE: the connection has been reset."""
_LONG, _INT = struct.Struct("=Q"), struct.Struct("=I")
# Where struct tcp_info of linux/tcp.h has them.
_AT_CONFIRMED = 120  # tcpi_bytes_acked
_AT_WAITING = 144  # tcpi_notsent_bytes
_AT_SENT = 200  # tcpi_bytes_sent
_WAITS = (0.0, 0.002, 0.01, 0.05, 0.2, 0.75)
"""Seconds between the looks at whether the upstream's machine has answered."""


class Connected(Protocol):
    """What is asked of a socket."""

    def fileno(self) -> int:
        """Its file; -1 where it is closed."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """What the system says of it."""


class Progress(NamedTuple):
    """How far what was sent on a connection has come, in bytes since its beginning."""

    sent: int
    """Handed to the system, those that it has repeated counted again."""
    confirmed: int
    """That the other machine has received; its beginning counts as one."""
    is_reset: bool

    @classmethod
    def of(cls, connected: Connected | None) -> "Progress | None":
        """That of a socket; None where the system does not tell."""
        if connected is None or sys.platform != "linux":
            return None
        try:
            told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
        except OSError:
            return None  # It is closed, or no TCP.
        if len(told) < _AT_SENT + _LONG.size:
            return None  # An old kernel.
        (confirmed,) = _LONG.unpack_from(told, _AT_CONFIRMED)
        (waiting,) = _INT.unpack_from(told, _AT_WAITING)
        (sent,) = _LONG.unpack_from(told, _AT_SENT)
        return cls(sent + waiting, confirmed, told[0] == _CLOSED)


class Delivery:
    """That of one request, made before its first byte is sent. Close it: it may keep a file."""

    __slots__ = ("_before", "_kept", "_was_sent")

    def __init__(self, connected: Connected | None) -> None:
        before = Progress.of(connected)
        # Where the connection's beginning is not counted, the system does not count.
        self._before = before if before and before.confirmed else None
        self._kept: socket.socket | None = None
        self._was_sent = True

    def lose(self, connected: Connected | None, *, has_ended: bool) -> None:
        """The connection is lost. `has_ended` says that the upstream ended it (FIN), and did not
        only reset it. The socket is still open.
        """
        now = Progress.of(connected)
        if now is None or self._before is None:
            return
        self._was_sent = now.sent != self._before.sent
        if self._was_sent and has_ended and now.confirmed == self._before.confirmed:
            assert connected is not None
            self._kept = socket.socket(fileno=os.dup(connected.fileno()))

    async def has_failed(self) -> bool:
        """Whether it is known that the upstream has had none of the request, and will have none."""
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
        """Let go of the connection."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
