"""One address of a policyd over HTTP, by the Connect protocol, as connection.py is one over gRPC.

A call is a POST with the message, on one of a pool of kept connections (http_pool.py). It costs
policyd and its caller less than half of what gRPC costs.

- A kept connection that is lost, as policyd closes it at a restart, is no silence: the call is made
  once more, at once, on a new connection. Each method may be repeated: an evaluation has its key.
- When the peer falls silent (silence.py), its calls end, to be made elsewhere, and all connections
  are replaced. The address is then away (recovery.py).
- Behind one address there may be several workers, of which one hangs while others answer. So a
  call that has waited longer than `patience` also ends when another one, which began within that
  time, is answered. Where all answers are slow, this ends none.
"""

import asyncio
import time
from collections.abc import Mapping
from ssl import SSLContext
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from policyd.client.connect_errors import AWAY, reported_failure, stranger
from policyd.client.http_pool import Foreign, Lost, Pool, Reply, Unreachable
from policyd.client.recovery import HEAD_START, LOOK, Recovery
from policyd.client.silence import Silence
from policyd.client.statuses import Failed, Meaning
from policyd.client.transport import Method

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

_SERVICE = "/policyd.v1.PolicyService/"
_PROTO = "application/proto"
_HEALTHZ, _DECISIONSZ = "/healthz", "/decisionsz"
_Code = grpc.StatusCode


class _Call:
    """A call under way."""

    __slots__ = ("begun", "cause", "is_patient", "limit")

    def __init__(self, limit: asyncio.Timeout, *, is_patient: bool) -> None:
        self.limit = limit
        self.is_patient = is_patient
        self.begun = time.monotonic()
        self.cause = ""
        """Why it was ended before its deadline; "" where it was not."""

    def end(self, cause: str) -> None:
        """End it now."""
        if not self.cause and not self.limit.expired():
            self.cause = cause
            self.limit.reschedule(0)


class HttpConnection:
    """Calls the policyd at `origin`, such as http://policyd:8082, which counts as silent after
    `patience` seconds with calls under way and no answer. For https://, `context` is the TLS
    context; by default the system's authorities count. See transport.Transport.
    """

    def __init__(
        self, origin: str, context: SSLContext | None, token: str, patience: float
    ) -> None:
        self.address = origin
        self._context = context
        self._headers = {"Content-Type": _PROTO}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._silence = Silence(patience, self._fall_silent)
        self._recovery = Recovery(self._look, self._silence)
        self._calls: dict[_Call, None] = {}
        """In the order in which they began."""
        self._is_closed = False
        self._retired: list[Pool] = []
        self._pool = self._new_pool()

    @property
    def is_away(self) -> bool:
        """Whether the peer did not answer when it was last tried."""
        return self._recovery.is_away

    @property
    def load(self) -> int:
        """Calls under way."""
        return len(self._calls)

    async def ask(
        self,
        method: Method[_Request, _Response],
        request: _Request,
        seconds: float,
        *,
        is_patient: bool,
    ) -> _Response:
        """See Transport. Raises Failed."""
        call = _Call(asyncio.timeout(seconds), is_patient=is_patient)
        self._calls[call] = None
        if not is_patient:
            self._silence.expect()
        # policyd waits for a revision as long as its caller says.
        headers = {"Connect-Timeout-Ms": str(int(1000 * seconds))} if is_patient else None
        try:
            async with call.limit:
                reply = await self._post(method.name, request.SerializeToString(), headers)
        except TimeoutError:
            raise self._late(call) from None
        finally:
            del self._calls[call]
            if not is_patient:
                self._silence.settle()
        return self._answer(method.response, reply, call)

    async def answers(self, seconds: float) -> bool:
        """See Transport."""
        reply = await self._get(_HEALTHZ, seconds)
        if reply is None or reply.status != 200 or b'"alive"' not in reply.body:
            return False
        self._recovery.end()
        return True

    async def decides(self, seconds: float) -> bool:
        """See Transport."""
        reply = await self._get(_DECISIONSZ, seconds)
        return reply is not None and reply.status not in AWAY

    async def close(self) -> None:
        """Close all connections. Calls under way are cancelled."""
        self._is_closed = True
        self._silence.stop()
        await self._recovery.close()
        for call in tuple(self._calls):
            call.end("it was closed")
        for pool in (*self._retired, self._pool):
            await pool.close()

    # --- calls ---------------------------------------------------------------------------------

    async def _post(self, name: str, body: bytes, headers: Mapping[str, str] | None) -> Reply:
        try:
            return await self._post_twice(name, body, headers)
        except Foreign as problem:
            raise self._stranger(str(problem)) from None
        except (Lost, Unreachable) as problem:
            self._recovery.begin()
            said = f"{self.address}: {problem}"
            raise Failed(_Code.UNAVAILABLE, said, Meaning.NOT_REACHED) from None
        except RuntimeError:
            if self._is_closed:
                raise asyncio.CancelledError from None
            raise

    async def _post_twice(self, name: str, body: bytes, headers: Mapping[str, str] | None) -> Reply:
        pool = self._pool
        try:
            return await pool.exchange(_SERVICE + name, body, headers)
        except Lost:
            # The others that are kept may be lost, too.
            self._renew(pool)
            return await self._pool.exchange(_SERVICE + name, body, headers)

    def _answer(self, kind: type[_Response], reply: Reply, call: _Call) -> _Response:
        if reply.status == 200 and reply.kind == _PROTO:
            try:
                answer = kind.FromString(reply.body)
            except DecodeError:
                raise self._stranger("its answer cannot be read") from None
            self._recovery.end()
            self._end_overtaken(call)
            return answer
        told = reported_failure(reply)
        if told is None or told.meaning is Meaning.NOT_REACHED:
            self._recovery.begin()
        else:
            self._recovery.end()
        raise told or stranger(self.address, reply)

    def _stranger(self, what: str) -> Failed:
        self._recovery.begin()
        said = (
            f"{self.address} answers as no policyd does: {what}; ask at the address of its --http"
        )
        return Failed(_Code.UNKNOWN, said, Meaning.ELSEWHERE)

    def _late(self, call: _Call) -> BaseException:
        if self._is_closed:
            return asyncio.CancelledError()
        return Failed(
            _Code.DEADLINE_EXCEEDED, call.cause or "Deadline Exceeded", Meaning.NOT_REACHED
        )

    def _end_overtaken(self, answered: _Call) -> None:
        """End the oldest call, if it has waited too long and `answered` has not."""
        oldest = next((one for one in self._calls if not one.is_patient), None)
        limit = time.monotonic() - self._silence.patience
        if oldest is not None and oldest.begun < limit < answered.begun:
            oldest.end(self._unanswered)

    @property
    def _unanswered(self) -> str:
        return f"no answer from {self.address} for {self._silence.patience:g} s"

    # --- silence -------------------------------------------------------------------------------

    def _fall_silent(self) -> None:
        for call in tuple(self._calls):
            call.end(self._unanswered)
        self._renew(self._pool)
        self._recovery.begin()

    async def _look(self, rivals: int) -> bool:
        """Whether the peer answers on one of `rivals` new connections, which is then kept."""
        looks: set[asyncio.Task[bool]] = set()
        try:
            for number in range(rivals, 0, -1):
                looks.add(asyncio.create_task(self.answers(LOOK)))
                patience = HEAD_START if number > 1 else LOOK
                over, _ = await asyncio.wait(
                    looks, timeout=patience, return_when=asyncio.FIRST_COMPLETED
                )
                if over:
                    return any(look.result() for look in over)
            return False
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)

    async def _get(self, path: str, seconds: float) -> Reply | None:
        """The response to a probe; None where there is none in time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._pool.exchange(path)
        except (TimeoutError, Lost, Unreachable, Foreign):
            return None
        except RuntimeError:
            if self._is_closed:
                return None
            raise

    # --- pools ---------------------------------------------------------------------------------

    def _new_pool(self) -> Pool:
        return Pool(self.address, self._context, self._headers, self._silence.patience / 4)

    def _renew(self, pool: Pool) -> None:
        """Replace `pool`, unless that has been done; calls under way on it go on to their end. A
        pool that never had an answer stays, as it keeps no connection, and each new pool would look
        the name up again, in a thread that waits while no name server answers."""
        if pool is not self._pool or self._is_closed or not pool.has_answered:
            return
        self._pool = self._new_pool()
        self._retired = [one for one in self._retired if not one.is_closed] + [pool]
        pool.retire()
