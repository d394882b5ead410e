"""What a Python gateway asks policyd with: a deadline, and many questions in one call.

    async with PolicyClient("127.0.0.1:50051") as policyd:
        answer = await policyd.evaluate(EvaluateRequest(key=key, has_user=False))

Questions that are asked in the same turn of the event loop go out as one BatchEvaluate, which costs
both sides a fraction of a call for each. What became of the requests is reported in batches, too.
policyd.sync_client is the same for threads.
"""

import asyncio
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import grpc
from grpc import ChannelCredentials

from policyd import denial, forking
from policyd.errors import NoDecision
from policyd.reporter import Reporter
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    BatchEvaluateItem,
    BatchEvaluateRequest,
    CheckKeyRequest,
    CheckKeyResponse,
    EvaluateRequest,
    EvaluateResponse,
    Explanation,
    Header,
    Outcome,
    ReportOutcomeRequest,
    ReportOutcomeResponse,
)
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

if TYPE_CHECKING:
    from policyd.v1.policy_pb2_grpc import PolicyServiceAsyncStub  # It is in the types only.

__all__ = ["ChannelCredentials", "NoDecision", "OnError", "PolicyClient", "tls_credentials"]

OnError = Literal["raise", "deny", "allow"]
"""What evaluate() does where there is no decision.

raise: it raises NoDecision.
deny: it answers with a denial of its own, 503 with Retry-After.
allow: it allows, where policyd could not be reached in time; where policyd would not decide, as
its log is full or the question is malformed, it denies all the same.
Such an answer has no decision_id, and says the cause in explanation.summary.
"""

MAX_BATCH = 256
"""Questions in one call. The server takes 1,000; smaller ones spread over more of its turns."""
MAX_BATCH_BYTES = 1024 * 1024
"""Bytes of questions in one call, so that a few large ones do not make it too large for all."""
_OPTIONS = (
    # A policyd that restarts is found again quickly.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),  # Done here, so that the deadline is one.
    ("grpc.max_send_message_length", -1),
    # A policyd that hangs, or is gone without a word, is left for another.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
)
_OUTAGES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# A policyd that stops ends what it has not begun with CANCELLED.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_RETRY_PAUSE = 0.02
"""Seconds before the second try."""
_HEALTH = "/grpc.health.v1.Health/Check"
_REPORT_TIMEOUT = 5.0
"""Seconds that a call with outcomes may take: nobody waits for it."""
_MARGIN = 0.5
"""Seconds beyond the timeout after which gRPC is given up."""
CLOSED = "the client of policyd was closed"
_Waiting = tuple[EvaluateRequest, asyncio.Future[EvaluateResponse]]
_Answer = EvaluateResponse | NoDecision
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class PolicyClient:
    """Asks a policyd at `target` (HOST:PORT) and waits at most `timeout` seconds for an answer,
    in which a policyd that cannot be reached is tried again, up to twice.

    `credentials` make it a TLS channel; `token` is what a policyd with --caller-token-file wants.
    Belongs to the event loop that it is first used in: its channel is made there, so one that was
    made before the process forked may be used in a child. Once it has a channel, a fork leaves the
    children none: there evaluate() ends with NoDecision, in new clients too. Close it before.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 1.0,
        credentials: ChannelCredentials | None = None,
        token: str = "",
        on_error: OnError = "raise",
    ) -> None:
        self._timeout = timeout
        self._on_error = on_error
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        if not isinstance(credentials, ChannelCredentials | None):
            raise TypeError(f"credentials are what tls_credentials() makes, not {credentials!r}")
        self._target, self._credentials = target, credentials
        self._channel: grpc.aio.Channel | None = None
        self._stub: PolicyServiceAsyncStub | None = None
        self._closed = False
        self._waiting: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._reporter = Reporter(self._report)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Report what waits to be reported, as far as that takes no more than 2 s, and close the
        channel. Questions under way end with NoDecision."""
        if forking.is_broken():  # All that it has is of the process that this one was forked from.
            self._closed = True
            return
        await self._reporter.close()
        self._closed = True
        if channel := self._channel:
            await channel.close()
        # gRPC stops its threads when the channel has gone, and then the process may fork.
        self._channel = self._stub = None
        forking.in_use.discard(self)

    async def evaluate(self, request: EvaluateRequest) -> EvaluateResponse:
        """Ask for a decision. Where none comes in time, for whatever cause, `on_error` holds."""
        try:
            return await self._decision(request)
        except NoDecision as problem:
            return instead(problem, self._on_error)

    async def check_key(self, request: CheckKeyRequest) -> CheckKeyResponse:
        """Ask whether a key is in force and the request's body needed, before it is held.

        A policyd that does not know the question yet counts as one that needs the body. Raises
        NoDecision.
        """
        try:
            async with asyncio.timeout(self._timeout + _MARGIN):
                return await self._call(self._connected().CheckKey, request)
        except TimeoutError:
            raise _no_answer() from None
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return CheckKeyResponse(in_force=True, needs_body=True)
            raise _no_decision(error) from None
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            raise NoDecision(CLOSED) from None

    async def _decision(self, request: EvaluateRequest) -> EvaluateResponse:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[EvaluateResponse] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((request, answer))
        return await answer

    def report(self, outcome: Outcome) -> None:
        """Report what became of a request that was allowed. It returns at once and never fails.

        Outcomes go out in batches. While policyd cannot be reached they wait, up to 20,000 of them;
        what is lost beyond that is counted, and logged now and then. A policyd that does not know
        of outcomes yet gets none.
        """
        forking.in_use.add(self)  # Its queue is a matter of this process, too.
        self._reporter.report(outcome)

    def take_outcomes(self) -> list[Outcome]:
        """Take back what was given to report() and is not sent yet, for another client."""
        return self._reporter.take()

    @property
    def outcomes_lost(self) -> int:
        """How many outcomes that were given to report() policyd will not get."""
        return self._reporter.lost

    async def can_reach(self, timeout: float) -> bool:
        """Whether a policyd answers within `timeout` seconds, whatever it says of its health: it
        decides for as long as it answers."""
        try:
            self._connected()
            assert self._channel is not None
            # Of the health service's messages nothing matters here, so they stay bytes.
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
            method = self._channel.unary_unary(_HEALTH)
            async with asyncio.timeout(timeout + _MARGIN):
                await method(b"", timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code() not in _OUTAGES
        except (NoDecision, TimeoutError, grpc.aio.UsageError):
            return False
        return True

    async def _report(self, outcomes: ReportOutcomeRequest) -> ReportOutcomeResponse:
        method = self._connected().ReportOutcome
        return await method(outcomes, timeout=_REPORT_TIMEOUT, metadata=self._metadata)

    def _connected(self) -> "PolicyServiceAsyncStub":
        if self._closed:
            raise NoDecision(CLOSED)
        forking.check()
        if self._stub is None:
            self._channel = _channel(self._target, self._credentials)
            self._stub = PolicyServiceStub(self._channel)
            forking.in_use.add(self)
        return self._stub

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in _batches(waiting):
            task = asyncio.create_task(self._ask(batch))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _ask(self, batch: list[_Waiting]) -> None:
        try:
            # The calls have deadlines, which gRPC's threads keep. This one does not need those.
            async with asyncio.timeout(self._timeout + _MARGIN):
                answers = await self._answers([request for request, _ in batch])
        except NoDecision as problem:
            answers = [problem] * len(batch)
        except TimeoutError:
            answers = [_no_answer()] * len(batch)
        except grpc.aio.AioRpcError as error:
            answers = [_no_decision(error)] * len(batch)
        except (asyncio.CancelledError, grpc.aio.UsageError):
            answers = [NoDecision(CLOSED)] * len(batch)
        except Exception as error:  # noqa: BLE001  # Whoever waits must be told, whatever it was.
            answers = [NoDecision(f"policyd could not be asked ({error})")] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            _settle(future, answer)

    async def _answers(self, requests: list[EvaluateRequest]) -> list[_Answer]:
        if len(requests) == 1:
            only = await self._call(self._connected().Evaluate, requests[0])
            return [only]
        items = [
            BatchEvaluateItem(id=str(number), request=request)
            for number, request in enumerate(requests)
        ]
        batch = BatchEvaluateRequest(items=items)
        results = (await self._call(self._connected().BatchEvaluate, batch)).results
        if len(results) != len(requests):
            raise NoDecision(f"{len(results)} answers to {len(requests)} questions")
        return [
            result.response
            if result.HasField("response")
            else NoDecision(f"policyd gave no decision ({result.status.message})")
            for result in results
        ]

    async def _call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request
    ) -> _Response:
        deadline = time.monotonic() + self._timeout
        # A policyd that is being replaced closes its connections; another takes the next call.
        try:
            return await method(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            left = deadline - time.monotonic()
            if error.code() not in _PASSING or left <= _RETRY_PAUSE:
                raise
        await asyncio.sleep(_RETRY_PAUSE)
        left = max(deadline - time.monotonic(), 0)
        return await method(request, timeout=left, metadata=self._metadata)


def _no_answer() -> NoDecision:
    return NoDecision("gRPC gave no answer in time", is_outage=True)


def _no_decision(error: grpc.aio.AioRpcError) -> NoDecision:
    reason = f"{error.code().name}: {error.details()}"
    is_outage = error.code() in _OUTAGES
    return NoDecision(f"policyd gave no decision ({reason})", is_outage=is_outage)


def _channel(target: str, credentials: ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials:
        return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


def _batches(waiting: list[_Waiting]) -> Iterator[list[_Waiting]]:
    batch: list[_Waiting] = []
    size = 0
    for question in waiting:
        size += question[0].ByteSize()
        if batch and (len(batch) == MAX_BATCH or size > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], question[0].ByteSize()
        batch.append(question)
    yield batch


def tls_credentials(
    authorities: bytes | None = None, key: bytes | None = None, certificate: bytes | None = None
) -> ChannelCredentials:
    """What PolicyClient takes to ask over TLS, all as PEM.

    `authorities` are those that policyd's certificate may be of, the system's if not given.
    `key` and `certificate` are what a policyd with --tls-client-ca wants to see.
    """
    return grpc.ssl_channel_credentials(authorities, key, certificate)


def instead(problem: NoDecision, on_error: OnError) -> EvaluateResponse:
    """The answer in place of a decision. Raises `problem` where the caller wants that."""
    if on_error == "raise":
        raise problem
    answer = EvaluateResponse(explanation=Explanation(summary=f"No decision: {problem}."))
    if on_error == "allow" and problem.is_outage:
        answer.decision = DECISION_ALLOW
        return answer
    refusal = denial.NO_DECISION
    answer.decision = DECISION_DENY
    answer.denial.http_status, answer.denial.body = refusal.status, refusal.body
    answer.denial.headers.extend(Header(name=name, value=text) for name, text in refusal.headers)
    return answer


def _settle(future: asyncio.Future[EvaluateResponse], answer: _Answer) -> None:
    if future.done():  # Whoever asked has gone away.
        return
    if isinstance(answer, NoDecision):
        future.set_exception(answer)
    else:
        future.set_result(answer)
