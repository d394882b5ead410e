"""The connections of one listener: how many there are, and how long each may keep it waiting.

Each is in one state, and every state but ANSWERING has a deadline:

    OPENING     its first request's head is not complete; a TLS handshake counts as part of it
    HEAD        a later request's head has begun
    BODY        the body comes, and has to keep a pace while the application reads it
    LEFTOVER    the answer is given, and the rest of the body is thrown away
    IDLE        between two requests
    ANSWERING   the application is at work; a client that does not read the answer is stalled
    CLOSING     it has been told to end

Where there is no room for a new connection, the one that has waited longest is ended for it, so
that clients that only hold connections stop no others; last of all one that does not read its
answer. One whose request is under way is not: then a few spare connections take what comes, so that
probes are answered, and others told to come again.

What waits for clients that do not read has a total for all of them: beyond it, the one that has
not read for longest is ended.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import Any, NamedTuple

from policyd.command.throttle import Throttle

_log = logging.getLogger(__name__)

MIN_PACE = 1024
"""Bytes a second that a body has to bring, over the time that `Limits.body` gives."""
FREE_HEAD = 16 * 1024
"""Bytes of a head that are held for any client, and ..."""
MAX_HEADS = 64 * 2**20
"""... those of all larger heads together."""
SPARE = 16
"""Connections beyond those that there is room for."""
_SPARED = 5.0
"""Seconds that a client which stops to read its answer, or to send its body, is spared where there
is no room."""
_YOUNG = 0.5
"""Seconds that a spare connection has for its request, whatever comes behind it."""
_LOOKED_AT = 100
"""Connections of a state among which one is looked for that can be spared."""
_CLOSE = 5.0
"""Seconds that a connection has to end in good order."""
_REMIND = 10.0
"""Seconds between two lines that say that there is no room."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the connections of a listener: their number, and seconds."""

    connections: int = 10_000
    head: float = 10.0
    """For a request's head, from the connection's beginning or the head's first byte."""
    body: float = 120.0
    """For a body that is held; one that is passed on has to keep MIN_PACE over as long."""
    idle: float = 75.0
    """Between two requests: longer than clients keep their connections."""
    write: float = 60.0
    """For a client to take some more of its answer."""
    unread: int = 256 * 2**20
    """Bytes of answers that wait for clients which do not read them, of all together."""
    ahead: int = 0
    """Bytes that the application may hold for each of these beside."""


class State(Enum):
    """What a connection waits for."""

    OPENING = auto()
    HEAD = auto()
    BODY = auto()
    LEFTOVER = auto()
    IDLE = auto()
    ANSWERING = auto()
    CLOSING = auto()


# Whom to end first for a new connection.
_DISPENSABLE = (
    State.OPENING,
    State.HEAD,
    State.CLOSING,
    State.LEFTOVER,
    State.IDLE,
    State.BODY,
)


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


class Connections:
    """Those that are open, by state, the longest in it first."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._by_state: dict[State, OrderedDict[Visit, None]] = {
            state: OrderedDict() for state in State
        }
        self._stalled: OrderedDict[Visit, _Stall] = OrderedDict()
        self._unread = 0
        self._throttle = Throttle(_REMIND, clock)
        self._heads = 0
        self.is_ending = False
        """Whether each answer ends its connection."""
        self.deadlines = {
            State.OPENING: limits.head,
            State.HEAD: limits.head,
            State.LEFTOVER: limits.head,
            State.IDLE: limits.idle,
            State.CLOSING: _CLOSE,
        }

    def __len__(self) -> int:
        return sum(map(len, self._by_state.values()))

    def enter(self, visit: Visit) -> None:
        """A new one."""
        visit.since = self._clock()
        visit.is_spare = len(self) >= self.limits.connections
        self._by_state[visit.state][visit] = None

    def move(self, visit: Visit, state: State) -> None:
        """It waits for something else now. What has left, or is closing, stays so."""
        if state is visit.state or visit.state is State.CLOSING:
            return
        if not self.has(visit):
            return
        del self._by_state[visit.state][visit]
        visit.state, visit.since, visit.base = state, self._clock(), visit.received
        self._by_state[state][visit] = None

    def leave(self, visit: Visit) -> None:
        """It is gone."""
        self._by_state[visit.state].pop(visit, None)
        self.flow(visit)
        self.hold_head(visit, 0)
        visit.forget()

    def hear(self, visit: Visit, size: int) -> None:
        """So many bytes have come."""
        visit.received += size
        visit.heard = self._clock()

    def stall(self, visit: Visit) -> None:
        """Its client does not take what is sent."""
        if not self.has(visit):
            return
        self.flow(visit)
        stall = _Stall(self._clock(), visit.unread() + self.limits.ahead)
        self._stalled[visit] = stall
        self._unread += stall.size
        while self._unread > self.limits.unread:
            self._tell(
                "answers that clients do not read take %d bytes, more than may be: those that have "
                "not read for longest are closed (--answer-memory)",
                self._unread,
            )
            self._cut(next(iter(self._stalled)))

    def flow(self, visit: Visit) -> None:
        """Its client takes what is sent again."""
        if stall := self._stalled.pop(visit, None):
            self._unread -= stall.size

    def has(self, visit: Visit) -> bool:
        """Whether it has not left."""
        return visit in self._by_state[visit.state]

    def hold_head(self, visit: Visit, size: int) -> bool:
        """Its head is `size` bytes so far. Returns whether there is room for that."""
        counted = size if size > FREE_HEAD else 0
        self._heads += counted - visit.head
        visit.head = counted
        return not counted or self._heads <= MAX_HEADS

    def has_room(self) -> bool:
        """Whether there is room for one more, if need be once another one is ended."""
        most = self.limits.connections
        return len(self) < most or self.make_room() or len(self) < most + SPARE

    def make_room(self) -> bool:
        """End the one that can be spared best, if there is such a one."""
        self._tell(
            "there are %d connections, as many as may be: those that wait longest are closed "
            "for new ones (--max-connections, and the process's limit of open files)",
            len(self),
        )
        now = self._clock()
        for state in _DISPENSABLE:
            looked_at = islice(self._by_state[state], _LOOKED_AT)
            if found := next((one for one in looked_at if _is_idle(one, now)), None):
                self._cut(found)
                return True
        # Who does not read only holds a connection, too, if at the price of a request.
        for visit, stall in self._stalled.items():
            if now - stall.since < _SPARED:
                break
            self._cut(visit)
            return True
        return False

    def sweep(self) -> None:
        """End those that have kept us waiting for too long."""
        now = self._clock()
        for state, seconds in self.deadlines.items():
            for visit in _longer(self._by_state[state], now - seconds):
                self._dismiss(visit)
        for visit in list(self._by_state[State.BODY]):
            self._check_pace(visit, now)
        for visit, stall in list(self._stalled.items()):
            if now - stall.since > self.limits.write:
                self._cut(visit)

    def pardon(self, seconds: float) -> None:
        """Give all of them so much more time: we have stood still, and what they have sent
        meanwhile is still to be read."""
        for visits in self._by_state.values():
            for visit in visits:
                visit.since += seconds
                visit.heard += seconds
        for visit, stall in self._stalled.items():
            self._stalled[visit] = stall._replace(since=stall.since + seconds)

    def wind_down(self) -> None:
        """Have each end with its next answer."""
        self.is_ending = True
        for visits in self._by_state.values():
            for visit in list(visits):
                visit.wind_down()

    def end(self, *states: State) -> None:
        """End those in one of these states, in good order."""
        for state in states:
            for visit in list(self._by_state[state]):
                self._dismiss(visit)

    def end_requests(self, *, answered: bool) -> None:
        """End the requests under way, either those whose answer has begun or the others."""
        for state in (State.BODY, State.ANSWERING):
            for visit in list(self._by_state[state]):
                visit.give_up(answered)

    def cut_all(self) -> None:
        """End all of them."""
        for visits in self._by_state.values():
            for visit in list(visits):
                visit.cut()

    def _cut(self, visit: Visit) -> None:
        visit.cut()
        self.leave(visit)

    def _dismiss(self, visit: Visit) -> None:
        is_silent = visit.state is State.OPENING and not visit.received
        if is_silent or visit.state is State.CLOSING:
            self._cut(visit)
        else:
            visit.dismiss()
            self.move(visit, State.CLOSING)

    def _check_pace(self, visit: Visit, now: float) -> None:
        if visit.is_paused():
            visit.since, visit.base = now, visit.received
        elif now - visit.since > self.limits.body:
            if visit.received - visit.base < MIN_PACE * self.limits.body:
                self._dismiss(visit)
            else:
                visit.since, visit.base = now, visit.received

    def _tell(self, what: str, count: int) -> None:
        if self._throttle.is_due():
            _log.warning(what, count)


class _Stall(NamedTuple):
    """That a client does not read."""

    since: float
    size: int
    """Bytes that wait for it."""


def _is_idle(visit: Visit, now: float) -> bool:
    """Whether it only holds its place: one that brings its body as it should is under way, and a
    spare one is let begin.
    """
    waited = now - visit.since
    if visit.state is State.BODY:
        is_slow = visit.received - visit.base < MIN_PACE * waited
        return not visit.is_paused() and (is_slow or now - visit.heard > _SPARED)
    return not visit.is_spare or waited > _YOUNG


def _longer(visits: OrderedDict[Visit, None], since: float) -> list[Visit]:
    found = []
    for visit in visits:
        if visit.since > since:
            break
        found.append(visit)
    return found


class Bounded:
    """Tells the table what its connection waits for: stands before one of uvicorn's protocols."""

    visit: Visit
    crowd: Connections
    cycle: Any
    flow: Any
    transport: Any

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)  # type: ignore[misc]
        if not self.crowd.has(self.visit):  # It had to go before it was there.
            transport.abort()
        self.visit.cut = transport.abort
        self.visit.dismiss = self.dismiss
        self.visit.wind_down = self.wind_down
        self.visit.give_up = self.give_up
        self.visit.is_paused = lambda: bool(self.flow.read_paused)
        self.visit.unread = transport.get_write_buffer_size

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.crowd.leave(self.visit)
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.crowd.hear(self.visit, len(data))
        super().data_received(data)  # type: ignore[misc]
        self.crowd.move(self.visit, self._state())

    def on_response_complete(self) -> None:
        """See uvicorn's protocols."""
        super().on_response_complete()  # type: ignore[misc]
        self.crowd.move(self.visit, self._state())

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.crowd.stall(self.visit)
        super().pause_writing()  # type: ignore[misc]

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.crowd.flow(self.visit)
        super().resume_writing()  # type: ignore[misc]

    def dismiss(self) -> None:
        """End the connection, in good order if the client lets it."""
        self.transport.close()

    def wind_down(self) -> None:
        """End the connection with the answer that is under way; at once where there is none."""
        self.shutdown()  # type: ignore[attr-defined]  # uvicorn's

    def give_up(self, answered: bool) -> None:
        """End the request under way if its answer has begun, or has not, as `answered` says, where
        that can be told apart."""

    def has_begun_head(self) -> bool:
        """Whether some of the next request's head is there."""
        return False

    def has_refused(self) -> bool:
        """Whether the connection is to end, as the client has broken its rules."""
        return False

    def _state(self) -> State:
        cycle = self.cycle  # None before the first request
        if self.has_refused():
            return State.CLOSING
        if cycle is None:
            return State.OPENING
        if not cycle.response_complete:
            return State.BODY if cycle.more_body else State.ANSWERING
        if cycle.more_body:
            return State.LEFTOVER
        return State.HEAD if self.has_begun_head() else State.IDLE


async def keep_sweeping(crowd: Connections) -> None:
    """Sweep again and again, until cancelled."""
    limits = crowd.limits
    pause = min(1.0, min(limits.head, limits.body, limits.idle, limits.write) / 4)
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        await asyncio.sleep(pause)
        # This process, or its machine, may have stood still, and is about to read what has come.
        if (late := clock() - began - pause) > pause:
            crowd.pardon(late)
        crowd.sweep()
