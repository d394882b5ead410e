"""The protocol's side of the table of connections: tells it what a connection waits for."""

from typing import Any

from policyd.asgi.connections import Connections
from policyd.asgi.visit import State, Visit


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
