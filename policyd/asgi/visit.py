"""One connection of a listener, as the table of connections knows it: its state, since when, and
how it can be ended."""

from collections.abc import Callable
from enum import Enum, auto


class State(Enum):
    """What a connection waits for."""

    OPENING = auto()
    HEAD = auto()
    BODY = auto()
    LEFTOVER = auto()
    IDLE = auto()
    ANSWERING = auto()
    CLOSING = auto()


class Visit:
    """One connection: `cut` ends it at once, `dismiss` in good order, `wind_down` with its next
    answer, and `give_up` where its answer has not begun."""

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
        """Whether it is one beyond those that there is room for."""
        self.since = 0.0
        self.received = 0
        """Bytes so far."""
        self.heard = 0.0
        """When the last of them came."""
        self.head = 0
        """Bytes of its head that count towards the total."""
        self.base = 0
        """Those at the beginning of the span over which a body's pace is measured."""

    def forget(self) -> None:
        """Let go of the connection, which is gone or not there yet."""
        self.cut: Callable[[], object] = bool
        self.dismiss: Callable[[], object] = bool
        self.wind_down: Callable[[], object] = bool
        self.give_up: Callable[[bool], object] = bool
        self.is_paused: Callable[[], bool] = bool
        """Whether it is the application that does not read."""
        self.unread: Callable[[], int] = int
        """Bytes of the answer that wait for the client."""
