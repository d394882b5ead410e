"""The protocol's side of the table of connections: it reports what its connection waits for."""

from typing import Any

from policyd.asgi.connections import Connections
from policyd.asgi.visit import State, Visit


class Bounded:
    """A mixin before one of uvicorn's protocols: reports to the table what the connection waits
    for.

    The door sets `visit`, the connection's entry, and `crowd`, the table, before the connection is
    made.
    """

    visit: Visit
    crowd: Connections
    cycle: Any
    flow: Any
    transport: Any

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)  # type: ignore[misc]  # of uvicorn
        if not self.crowd.has(self.visit):  # It was ended during its TLS handshake.
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
        super().connection_lost(exc)  # type: ignore[misc]  # of uvicorn

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.crowd.hear(self.visit, len(data))
        super().data_received(data)  # type: ignore[misc]  # of uvicorn
        self.crowd.move(self.visit, self._state())

    def on_response_complete(self) -> None:
        """See uvicorn's protocols."""
        super().on_response_complete()  # type: ignore[misc]  # of uvicorn
        self.crowd.move(self.visit, self._state())

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.crowd.stall(self.visit)
        super().pause_writing()  # type: ignore[misc]  # of uvicorn

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.crowd.flow(self.visit)
        super().resume_writing()  # type: ignore[misc]  # of uvicorn

    def dismiss(self) -> None:
        """End the connection in good order, if the client allows that."""
        self.transport.close()

    def wind_down(self) -> None:
        """End the connection after the answer under way; at once where there is none."""
        self.shutdown()  # type: ignore[attr-defined]  # uvicorn's

    def give_up(self, answered: bool) -> None:
        """End the request under way: only one whose answer has begun if `answered`, else only one
        whose answer has not. By default nothing ends, as uvicorn's protocols do not tell which."""

    def has_begun_head(self) -> bool:
        """Whether a part of the next request's head has come."""
        return False

    def has_rejected(self) -> bool:
        """Whether the connection is to end because the client has broken its rules."""
        return False

    def _state(self) -> State:
        cycle = self.cycle  # None before the first request
        if self.has_rejected():
            return State.CLOSING
        if cycle is None:
            return State.OPENING
        if not cycle.response_complete:
            return State.BODY if cycle.more_body else State.ANSWERING
        if cycle.more_body:
            return State.LEFTOVER
        return State.HEAD if self.has_begun_head() else State.IDLE
