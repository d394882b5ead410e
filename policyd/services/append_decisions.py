"""LocalDecisionService.AppendDecisions: gateways that decide by themselves hand over their log.

The store is the destination of a gateway's spool as it is of policyd's own: entries and the
position after them are one transaction. So a request that comes again, because no response reached
the gateway, changes nothing. In addition, policyd checks what the entries claim: see
claimed_entries.py.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from policyd.command.deadline import TIMEOUT
from policyd.command.log_throttle import Throttle
from policyd.command.threads import StoreThreads
from policyd.decision_log.spool import Chunk
from policyd.errors import GatewayTooSlow, InvalidArgument, PolicydError, WrongDatabase
from policyd.services import local_messages
from policyd.services.claimed_entries import GatewayDestination
from policyd.services.errors import Note, unnoted
from policyd.services.lasting_streams import LastingStreams, next_request, write
from policyd.store import Store
from policyd.store.destination import NoteShipped
from policyd.v1 import local_pb2 as pb

_log = logging.getLogger(__name__)

MOST = 250
"""How many streams a worker takes entries from. It may hold a message of --max-message of each."""
_BEGIN = 10.0
"""Seconds for a gateway to send the first request of a stream ..."""
_IDLE = 40.0
"""... and each further one. A gateway makes none on a stream that is 30 s old, so that no request
crosses this end."""
_LIFE = 90.0
"""Seconds after which a stream ends though its gateway still uses it. A gateway's own deadline is
60 s: see client/policyd_destination.py."""
_PATIENCE = 30.0
"""Seconds for a gateway to take a response."""
_AT_ONCE = 2
_LONGER = 3
"""An append may take this many times the database's time-out."""
_LOG_INTERVAL = 60.0


class Appending:
    """Appends the entries of gateways' spools to `store`.

    `identity` returns that of its database, `clock` the worker's time in seconds since 1970.
    Entries may be `ahead` seconds ahead of it, and the log keeps decisions for `keep` seconds.
    `note` gets each error that ends a stream, and `note_shipped` the entries that were stored.
    """

    def __init__(
        self,
        store: Store,
        identity: Callable[[], str],
        clock: Callable[[], float],
        ahead: float,
        keep: float,
        timeout: float = TIMEOUT,
        note: Note = unnoted,
        note_shipped: NoteShipped | None = None,
    ) -> None:
        self._store = store
        self._identity = identity
        self._clock = clock
        self._ahead = ahead
        self._keep = keep
        self._note = note
        self._note_shipped = note_shipped
        self._threads = StoreThreads(
            "gateways' decisions", timeout * _LONGER, at_once=_AT_ONCE, waiting=MOST
        )
        self._throttle = Throttle(_LOG_INTERVAL)
        self._streams = LastingStreams(MOST, "append decisions by")

    async def append(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """See local.proto."""
        try:
            with self._streams.held():
                await self._append(requests, context)
        except PolicydError as error:
            self._note(error)
            await self._streams.end(context, error)

    async def _append(self, requests: AsyncIterator[bytes], context: Any) -> None:
        stream: _Stream | None = None
        ends = time.monotonic() + _LIFE
        patience = _BEGIN
        while (data := await self._next(requests, patience, is_first=stream is None)) is not None:
            request = local_messages.parsed(pb.AppendDecisionsRequest, data)
            kind = request.WhichOneof("request")
            if kind == "resume":
                stream = self._resumed(request.resume, stream)
            if kind is None or stream is None:
                raise InvalidArgument("the stream begins with `resume`, and each request is one")
            response = await self._threads.run(_ANSWERS[kind], stream, request)
            self._tell_rejected(stream)
            with self._streams.waiting():
                await write(context, response.SerializeToString(), _PATIENCE)
            patience = min(_IDLE, ends - time.monotonic())

    async def _next(
        self, requests: AsyncIterator[bytes], patience: float, *, is_first: bool
    ) -> bytes | None:
        """The next request. None: none will come, as the gateway has ended its side, or has nothing
        to append for now, or as the stream has lasted long enough."""
        try:
            with self._streams.waiting():
                return await next_request(requests, patience)
        except TimeoutError:
            if is_first:
                raise GatewayTooSlow(
                    f"the gateway has begun a stream, and sent no request for {patience:g} s"
                ) from None
            return None

    def _resumed(self, request: pb.ResumeSpool, before: "_Stream | None") -> "_Stream":
        local_messages.check_resume(request)
        if before is not None and before.spool != request.spool:
            raise InvalidArgument("a stream is of one spool: begin another for another spool")
        known = self._identity()
        if request.database and known and request.database != known:
            if self._throttle.is_due():
                _log.error(
                    "a gateway on %s has decisions of the database %s, and this policyd's is %s: "
                    "they are not taken. Give the gateway the policyd of that database",
                    *(request.host, request.database, known),
                )
            raise WrongDatabase(
                f"the decisions are of the database {request.database}, and this policyd's is "
                f"{known}: hand them to the policyd of that database"
            )
        destination = GatewayDestination(
            self._store, self._clock, self._ahead, self._keep, self._note_shipped
        )
        return _Stream(self._store, destination, request, known)

    def _tell_rejected(self, stream: "_Stream") -> None:
        if stream.rejected and self._throttle.is_due():
            _log.error(
                "%d log entries of the gateway on %s are not taken, and count as lost: %s",
                *(stream.rejected, stream.host, stream.reason),
            )
            stream.rejected = 0


class _Stream:
    """One gateway's spool, whose entries come by one stream. Its methods may block."""

    def __init__(
        self,
        store: Store,
        destination: GatewayDestination,
        request: pb.ResumeSpool,
        database: str,
    ) -> None:
        self._store = store
        self._destination = destination
        self._database = database
        self.spool = request.spool
        self.host = request.host or "an unnamed host"
        self.rejected = 0
        """Lines that were not taken, and that no log line has counted yet."""

    @property
    def reason(self) -> str:
        """Why the last of the rejected lines was not taken."""
        return self._destination.reason

    def resume(self, _: pb.AppendDecisionsRequest) -> pb.AppendDecisionsResponse:
        """How far the files are appended.

        Positions are kept for a month from now on, and no stream lasts that long. A gateway that is
        away for longer sends its files from their beginning: the log recognises the entries that it
        has by their IDs, and those that it has retired come back until they are retired again.
        """
        self._store.positions.keep(self.spool)
        return pb.AppendDecisionsResponse(
            positions=self._destination.positions(self.spool), database=self._database
        )

    def chunk(self, request: pb.AppendDecisionsRequest) -> pb.AppendDecisionsResponse:
        """Append the lines that are taken."""
        given = request.chunk
        local_messages.check_chunk(given)
        lines = given.lines.removesuffix(b"\n").split(b"\n")
        end = given.start + len(given.lines)
        chunk = Chunk(given.file, lines, given.start, end, is_last=False)
        appended = self._destination.append(self.spool, chunk)
        rejected = len(lines) - appended
        self.rejected += rejected
        return pb.AppendDecisionsResponse(appended=appended, rejected=rejected)

    def forget(self, request: pb.AppendDecisionsRequest) -> pb.AppendDecisionsResponse:
        """Forget the positions of files."""
        files = local_messages.check_files(request.forget.files)
        self._destination.forget(self.spool, files)
        return pb.AppendDecisionsResponse()

    def losses(self, request: pb.AppendDecisionsRequest) -> pb.AppendDecisionsResponse:
        """Note losses."""
        self._destination.lose(local_messages.check_losses(request.losses.lost))
        return pb.AppendDecisionsResponse()

    def lost_by(self, request: pb.AppendDecisionsRequest) -> pb.AppendDecisionsResponse:
        """Read losses."""
        processes = local_messages.check_processes(request.lost_by.processes)
        return pb.AppendDecisionsResponse(lost=self._destination.lost_by(processes))


_ANSWERS: dict[str, Callable[[_Stream, pb.AppendDecisionsRequest], pb.AppendDecisionsResponse]]
_ANSWERS = {
    "resume": _Stream.resume,
    "chunk": _Stream.chunk,
    "forget": _Stream.forget,
    "losses": _Stream.losses,
    "lost_by": _Stream.lost_by,
}
