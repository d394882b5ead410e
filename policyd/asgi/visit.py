"""One connection in the table of connections (connections.py): its state, when it entered that, and
the ways to end the connection."""

from collections.abc import Callable
from enum import Enum, auto


class State(Enum):
    """What a connection waits for: see connections.py."""

    OPENING = auto()
    HEAD = auto()
    BODY = auto()
    LEFTOVER = auto()
    IDLE = auto()
    ANSWERING = auto()
    CLOSING = auto()


class Visit:
    """One connection. `cut` ends it at once, `dismiss` in good order, `wind_down` with its next
    answer, and `give_up` ends its request under way."""

    __slots__ = (
        "base",
        "cut",
        "dismiss",
        "give_up",
        "head",
        "heard",
        "is_paused",
        "is_spare",
        "received",
        "since",
        "state",
        "unread",
        "wind_down",
    )

    def __init__(self) -> None:
        self.forget()
        self.state = State.OPENING
        self.is_spare = False
        """Whether there is no room for it, so that the app answers only probes on it."""
        self.since = 0.0
        """When it entered its state."""
        self.received = 0
        """Bytes received so far."""
        self.heard = 0.0
        """When the last byte came."""
        self.head = 0
        """Bytes of its incomplete head that count towards the total of all heads."""
        self.base = 0
        """Bytes that had been received when the measuring of its body's pace began."""

    def forget(self) -> None:
        """Let go of the transport, which is gone or not there yet."""
        self.cut: Callable[[], object] = bool
        self.dismiss: Callable[[], object] = bool
        self.wind_down: Callable[[], object] = bool
        self.give_up: Callable[[bool], object] = bool
        self.is_paused: Callable[[], bool] = bool
        """Tells whether the application, not the client, delays the body."""
        self.unread: Callable[[], int] = int
        """Tells how many bytes of the answer wait for the client."""
