"""policyd as the destination of a gateway's spool: a Destination of decision_log/shipper.py over
AppendDecisions."""

import logging
import queue
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grpc

from policyd.client.connection import OPTIONS
from policyd.client.key_follower import Policyds, reason
from policyd.command.log_throttle import Throttle
from policyd.decision_log.spool import Chunk
from policyd.errors import PositionMoved, StoreUnavailable
from policyd.v1 import local_pb2 as pb
from policyd.v1.local_pb2_grpc import LocalDecisionServiceStub

_log = logging.getLogger(__name__)

_LIFE = 60.0
"""Seconds that a stream may last in all ..."""
_AGE = 30.0
"""... and after which no new request is made on it, so that each has at least the rest."""
_NAMES = 1000
"""Names of files, or of processes, in one request."""
_HOST = 256
"""Characters of the host's name that policyd takes."""
_REMIND = 10.0
"""Seconds between two log lines about entries that policyd does not take."""


class PolicydDestination:
    """Hands chunks to one of `policyds`; where one fails, the next call goes to another.

    `database` gives the identity of the database that the entries belong to. Every method blocks,
    and is called from one thread at a time.
    """

    def __init__(self, policyds: Policyds, database: Callable[[], str]) -> None:
        self._policyds = policyds
        self._database = database
        self._turn = 0
        self._spool = ""
        self._stream: _Stream | None = None
        self._throttle = Throttle(_REMIND)
        self.carried = 0
        """Entries that policyd has taken."""
        self.rejected = 0
        """Entries that policyd has not taken, and counts as lost."""

    def positions(self, spool: str) -> dict[str, int]:
        """See Destination."""
        self._spool = spool
        return dict(self._ask(resume=self._resume()).positions)

    def append(self, spool: str, chunk: Chunk) -> int:
        """See Destination."""
        self._spool = spool
        lines = b"\n".join(chunk.lines)
        if len(lines) < chunk.end - chunk.start:  # A piece of an overlong line has no line end.
            lines += b"\n"
        sent = pb.SpoolChunk(file=chunk.name, start=chunk.start, lines=lines)
        answer = self._ask(chunk=sent)
        self.carried += answer.appended
        self.rejected += answer.rejected
        if answer.rejected and self._throttle.is_due():
            _log.error(
                "policyd has not taken entries of the spool, which are lost (%d so far): its log "
                "says why",
                self.rejected,
            )
        return answer.appended

    def forget(self, spool: str, files: Iterable[str]) -> None:
        """See Destination."""
        self._spool = spool
        for names in _parts(files):
            self._ask(forget=pb.ForgetFiles(files=names))

    def lose(self, lost: Mapping[str, int]) -> None:
        """See Destination."""
        for names in _parts(lost):
            self._ask(losses=pb.SpoolLosses(lost={name: lost[name] for name in names}))

    def lost_by(self, processes: Iterable[str]) -> dict[str, int]:
        """See Destination."""
        found: dict[str, int] = {}
        for names in _parts(processes):
            found |= self._ask(lost_by=pb.LostBy(processes=names)).lost
        return found

    def close(self) -> None:
        """End the stream."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _resume(self) -> pb.ResumeSpool:
        host = socket.gethostname()[:_HOST]
        return pb.ResumeSpool(spool=self._spool, database=self._database(), host=host)

    def _ask(self, **request: Any) -> pb.AppendDecisionsResponse:
        try:
            if self._stream is not None and not self._stream.is_open:
                self.close()
            if self._stream is None:
                targets = self._policyds.targets
                self._stream = _Stream(self._policyds, targets[self._turn % len(targets)])
                if "resume" not in request:
                    self._stream.ask(resume=self._resume())
            return self._stream.ask(**request)
        except grpc.RpcError as error:
            self.close()
            self._turn += 1
            raise _problem(error) from None
        except BaseException:
            self.close()
            raise


class _Stream:
    """A stream to one policyd."""

    def __init__(self, policyds: Policyds, target: str) -> None:
        credentials = policyds.credentials
        if credentials:
            self._channel = grpc.secure_channel(target, credentials, options=OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        self._until = time.monotonic() + _AGE
        self._requests: queue.SimpleQueue[pb.AppendDecisionsRequest | None] = queue.SimpleQueue()
        sent: Iterator[pb.AppendDecisionsRequest] = iter(self._requests.get, None)
        self._answers = LocalDecisionServiceStub(self._channel).AppendDecisions(
            sent, timeout=_LIFE, metadata=policyds.metadata
        )

    @property
    def is_open(self) -> bool:
        """Whether a request may still be made on it: policyd ends an idle one."""
        return time.monotonic() < self._until and bool(self._answers.is_active())

    def ask(self, **request: Any) -> pb.AppendDecisionsResponse:
        """The response to a request. Raises grpc.RpcError."""
        self._requests.put(pb.AppendDecisionsRequest(**request))
        answer = next(self._answers, None)
        if answer is None:
            raise StoreUnavailable("policyd has ended the stream of decisions")
        return answer

    def close(self) -> None:
        """End it."""
        self._requests.put(None)
        self._answers.cancel()
        self._channel.close()


def _parts(names: Iterable[str]) -> Iterator[list[str]]:
    all_names = sorted(names)
    for begin in range(0, len(all_names), _NAMES):
        yield all_names[begin : begin + _NAMES]


def _problem(error: grpc.RpcError) -> PositionMoved | StoreUnavailable:
    code, details = error.code(), error.details()
    if code is grpc.StatusCode.ABORTED:
        return PositionMoved(details)
    return StoreUnavailable(reason(code, details))
