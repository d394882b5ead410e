"""The connections of one listener: how many there may be, what they may hold, and for how long.

The law: a client that only holds a connection keeps no other client out, and whatever a client can
make the server hold is bounded for all connections together, not only for each.

Each connection is in one state, and every state but ANSWERING has a deadline (`Limits`):

    OPENING     the head of its first request is incomplete; a TLS handshake is part of this state
    HEAD        the head of a later request is incomplete
    BODY        the body comes: it has to keep MIN_PACE while the application reads it
    LEFTOVER    the answer is complete, and the rest of the body is read and discarded
    IDLE        between two requests
    ANSWERING   the application is at work; the client's own delay is a stall, see below
    CLOSING     the connection has been told to end

`sweep` ends those whose deadline has passed. It is called several times within the shortest
deadline. Where the process itself stood still, `pardon` first gives every connection that time
back.

Room. Where there are as many connections as there may be, or the system has no file descriptor
left, a new connection takes the place of an old one: of those in the states of _DISPENSABLE the one
that has waited longest, and last of all one whose client does not read its answer. A connection
whose request is under way is never ended for another one. If all of them are, SPARE further
connections are taken in, and the app sees that in its scope (`is_spare`): it answers probes, and
has all other clients try again later.

Totals. Large heads have a total (MAX_HEADS): a connection that would exceed it is turned away. The
answers that clients do not read have one (`Limits.unread`): above it, the connection whose client
has not read for longest is ended.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from policyd.asgi.limits import Limits
from policyd.asgi.visit import State, Visit
from policyd.command.log_throttle import Throttle

_log = logging.getLogger(__name__)

MIN_PACE = 1024
"""Bytes a second that a body has to bring, on average over `Limits.body` seconds."""
FREE_HEAD = 16 * 1024
"""Bytes of a head that every client may use without counting towards the total."""
MAX_HEADS = 64 * 2**20
"""Bytes of all larger heads together."""
SPARE = 16
"""Connections that are taken in beyond `Limits.connections`."""
_SPARED = 5.0
"""Seconds for which a client that stops reading its answer, or sending its body, keeps its place
although a new connection needs it."""
_YOUNG = 0.5
"""Seconds for which a spare connection keeps its place, so that its request can arrive."""
_LOOKED_AT = 100
"""Connections of a state that are looked at to find one that can be ended."""
_CLOSE = 5.0
"""Seconds that a connection has to end in good order."""
_REMIND = 10.0
"""Seconds between two log lines that report a lack of room."""


# The states of connections that may be ended for a new one, in this order.
_DISPENSABLE = (
    State.OPENING,
    State.HEAD,
    State.CLOSING,
    State.LEFTOVER,
    State.IDLE,
    State.BODY,
)

# How long a connection may be in a state. BODY has a pace, and ANSWERING takes as long as it takes.
_DEADLINES: dict[State, Callable[[Limits], float]] = {
    State.OPENING: lambda limits: limits.head,
    State.HEAD: lambda limits: limits.head,
    State.LEFTOVER: lambda limits: limits.head,
    State.IDLE: lambda limits: limits.idle,
    State.CLOSING: lambda _: _CLOSE,
}


class Connections:
    """The table of open connections: by state, and within it in the order in which they entered it.

    `clock` gives seconds. In the methods, "it" is the connection `visit`.
    """

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
        """Whether each answer ends its connection, because the server is winding down."""
        self.deadlines = {state: of(limits) for state, of in _DEADLINES.items()}

    def __len__(self) -> int:
        return sum(map(len, self._by_state.values()))

    def enter(self, visit: Visit) -> None:
        """Add a new connection."""
        visit.since = self._clock()
        visit.is_spare = len(self) >= self.limits.connections
        self._by_state[visit.state][visit] = None

    def move(self, visit: Visit, state: State) -> None:
        """Note that it waits for something else now. One that has left, or is closing, stays so."""
        if state is visit.state or visit.state is State.CLOSING:
            return
        if not self.has(visit):
            return
        del self._by_state[visit.state][visit]
        visit.state, visit.since, visit.base = state, self._clock(), visit.received
        self._by_state[state][visit] = None

    def leave(self, visit: Visit) -> None:
        """Remove a connection that is gone."""
        self._by_state[visit.state].pop(visit, None)
        self.flow(visit)
        self.hold_head(visit, 0)
        visit.forget()

    def hear(self, visit: Visit, size: int) -> None:
        """Note that `size` bytes have come."""
        visit.received += size
        visit.heard = self._clock()

    def stall(self, visit: Visit) -> None:
        """Note that its client does not read its answer. Ends connections where the total of
        unread bytes is exceeded."""
        if not self.has(visit):
            return
        self.flow(visit)
        stall = _Stall(self._clock(), visit.unread() + self.limits.ahead)
        self._stalled[visit] = stall
        self._unread += stall.size
        while self._unread > self.limits.unread:
            self._tell(
                "answers that clients do not read take %d bytes, more than the limit: the "
                "connections whose clients have not read for longest are closed (--answer-memory)",
                self._unread,
            )
            self._cut(next(iter(self._stalled)))

    def flow(self, visit: Visit) -> None:
        """Note that its client reads again."""
        if stall := self._stalled.pop(visit, None):
            self._unread -= stall.size

    def has(self, visit: Visit) -> bool:
        """Whether it is still in the table."""
        return visit in self._by_state[visit.state]

    def hold_head(self, visit: Visit, size: int) -> bool:
        """Note that its incomplete head is `size` bytes so far. Returns whether there is room."""
        counted = size if size > FREE_HEAD else 0
        self._heads += counted - visit.head
        visit.head = counted
        return not counted or self._heads <= MAX_HEADS

    def has_room(self) -> bool:
        """Whether one more connection may enter. Ends another one for it where that is needed."""
        most = self.limits.connections
        return len(self) < most or self.make_room() or len(self) < most + SPARE

    def make_room(self) -> bool:
        """End one connection for a new one. Returns whether there was one that may be ended."""
        self._tell(
            "there are %d connections, as many as the limit allows: those that wait longest are "
            "closed for new ones (--max-connections, and the process's limit of open files)",
            len(self),
        )
        now = self._clock()
        for state in _DISPENSABLE:
            looked_at = islice(self._by_state[state], _LOOKED_AT)
            if found := next((one for one in looked_at if _is_idle(one, now)), None):
                self._cut(found)
                return True
        # A client that does not read its answer only holds its connection, too.
        for visit, stall in self._stalled.items():
            if now - stall.since < _SPARED:
                break
            self._cut(visit)
            return True
        return False

    def sweep(self) -> None:
        """End the connections whose deadline has passed."""
        now = self._clock()
        for state, seconds in self.deadlines.items():
            for visit in _entered_by(self._by_state[state], now - seconds):
                self._dismiss(visit)
        for visit in list(self._by_state[State.BODY]):
            self._check_pace(visit, now)
        for visit, stall in list(self._stalled.items()):
            if now - stall.since > self.limits.write:
                self._cut(visit)

    def pardon(self, seconds: float) -> None:
        """Give every connection `seconds` more: this process stood still for so long, and has yet
        to read what the clients sent meanwhile."""
        for visits in self._by_state.values():
            for visit in visits:
                visit.since += seconds
                visit.heard += seconds
        for visit, stall in self._stalled.items():
            self._stalled[visit] = stall._replace(since=stall.since + seconds)

    def wind_down(self) -> None:
        """Have each connection end with its next answer."""
        self.is_ending = True
        for visits in self._by_state.values():
            for visit in list(visits):
                visit.wind_down()

    def end(self, *states: State) -> None:
        """End the connections in these states in good order."""
        for state in states:
            for visit in list(self._by_state[state]):
                self._dismiss(visit)

    def end_requests(self, *, answered: bool) -> None:
        """End the requests under way: those whose answer has begun if `answered`, else the
        others."""
        for state in (State.BODY, State.ANSWERING):
            for visit in list(self._by_state[state]):
                visit.give_up(answered)

    def cut_all(self) -> None:
        """End all connections at once."""
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
    """An answer that the client does not read."""

    since: float
    """When the client stopped reading, in seconds of the clock."""
    size: int
    """Bytes that wait for the client."""


def _is_idle(visit: Visit, now: float) -> bool:
    """Whether it only holds its place. One whose body keeps its pace does not, and neither does a
    spare one that is so new that its request may still be on its way.
    """
    waited = now - visit.since
    if visit.state is State.BODY:
        is_slow = visit.received - visit.base < MIN_PACE * waited
        return not visit.is_paused() and (is_slow or now - visit.heard > _SPARED)
    return not visit.is_spare or waited > _YOUNG


def _entered_by(visits: OrderedDict[Visit, None], time: float) -> list[Visit]:
    found = []
    for visit in visits:
        if visit.since > time:
            break
        found.append(visit)
    return found


async def keep_sweeping(crowd: Connections) -> None:
    """Sweep the table again and again, until cancelled."""
    limits = crowd.limits
    pause = min(1.0, min(limits.head, limits.body, limits.idle, limits.write) / 4)
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        await asyncio.sleep(pause)
        # A sleep that took twice its time: this process, or its machine, stood still.
        if (late := clock() - began - pause) > pause:
            crowd.pardon(late)
        crowd.sweep()
