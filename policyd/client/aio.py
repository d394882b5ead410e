"""What a Python gateway asks policyd with: a deadline, and many questions in one call.

    async with PolicyClient("policyd-1:50051,policyd-2:50051") as policyd:
        answer = await policyd.evaluate(EvaluateRequest(key=key, has_user=False))

Questions that are asked in the same turn of the event loop go out as one BatchEvaluate, which costs
both sides a fraction of a call for each. What became of the requests is reported in batches, too.
policyd.client is the same for threads.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator
from typing import Literal, Self

import grpc
from grpc import ChannelCredentials

from policyd.client import forking
from policyd.client.peers import Peers, Targets, addresses
from policyd.client.reporter import Reporter
from policyd.client.statuses import Failed, failed_item
from policyd.engine import denial
from policyd.errors import NoDecision
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    BatchEvaluateRequest,
    BatchEvaluateResponse,
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

__all__ = ["ChannelCredentials", "NoDecision", "OnError", "PolicyClient", "tls_credentials"]

OnError = Literal["raise", "deny", "allow"]
"""What evaluate() does where there is no decision.

raise: it raises NoDecision.
deny: it answers with a denial of its own, 503 with Retry-After.
allow: it allows, where policyd could not be reached in time; where policyd would not decide, as
its log is full, its settings are older than min_revision or the question is malformed, it denies
all the same. So it does where one policyd would not decide and the others cannot be reached.
Such an answer has no decision_id, and says the cause in explanation.summary.
"""

MAX_BATCH = 256
"""Questions in one call. The server takes 1,000; smaller ones spread over more of its turns."""
MAX_BATCH_BYTES = 1024 * 1024
"""Bytes of questions in one call, so that a few large ones do not make it too large for all."""
_REPORT_TIMEOUT = 5.0
"""Seconds that a call with outcomes may take: nobody waits for it."""
CLOSED = "the client of policyd was closed"
_Waiting = tuple[EvaluateRequest, asyncio.Future[EvaluateResponse]]
_Answer = EvaluateResponse | NoDecision


class PolicyClient:
    """Asks a policyd at `target` and waits at most `timeout` seconds for an answer, in which it is
    tried again, with pauses that grow.

    `target` is HOST:PORT, or several of them, with commas or as a list, of which any will do. A
    host may be a name with several addresses. One that is not reached, or says nothing for a fourth
    of the timeout (0.1 s to 1 s), is left for another connection until it answers again. There are
    two connections where there is one HOST:PORT, and else one to each.

    `credentials` make it a TLS channel; `token` is what a policyd with --caller-token-file wants.
    Belongs to the event loop that it is first used in: its channel is made there, so one that was
    made before the process forked may be used in a child. Once it has a channel, a fork leaves the
    children none: there evaluate() ends with NoDecision, in new clients too. Close it before.
    """

    def __init__(
        self,
        target: Targets,
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
        self._targets, self._credentials = addresses(target), credentials
        self._peers: Peers | None = None
        self._closed = False
        self._waiting: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._reporter = Reporter(self._report)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Report what waits to be reported, as far as that takes no more than 2 s, and close the
        channel. Questions under way end with NoDecision."""
        if forking.is_broken():  # All that it has is of the process that this one was forked from.
            self._closed = True
            return
        await self._reporter.close()
        self._closed = True
        if peers := self._peers:
            await peers.close()
        # gRPC stops its threads when the channels have gone, and then the process may fork.
        self._peers = None
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
            return await self._connected().ask(lambda stub: stub.CheckKey, request, self._timeout)
        except Failed as problem:
            if problem.code is grpc.StatusCode.UNIMPLEMENTED:
                return CheckKeyResponse(in_force=True, needs_body=True)
            raise
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
            return await self._connected().can_reach(timeout)
        except NoDecision:
            return False

    async def _report(self, outcomes: ReportOutcomeRequest) -> ReportOutcomeResponse:
        return await self._connected().ask(
            lambda stub: stub.ReportOutcome, outcomes, _REPORT_TIMEOUT
        )

    def _connected(self) -> Peers:
        if self._closed:
            raise NoDecision(CLOSED)
        forking.check()
        if self._peers is None:
            self._peers = Peers(self._targets, self._credentials, self._metadata, self._timeout)
            forking.in_use.add(self)
        return self._peers

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in _batches(waiting):
            task = asyncio.create_task(self._ask(batch))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _ask(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._answers([request for request, _ in batch])
        except NoDecision as problem:
            answers = [problem] * len(batch)
        except (asyncio.CancelledError, grpc.aio.UsageError):
            answers = [NoDecision(CLOSED)] * len(batch)
        except Exception as error:  # noqa: BLE001  # Whoever waits must be told, whatever it was.
            answers = [NoDecision(f"policyd could not be asked ({error})")] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            _settle(future, answer)

    async def _answers(self, requests: list[EvaluateRequest]) -> list[_Answer]:
        if len(requests) == 1:
            return [await self._answer(requests[0])]
        asked = BatchEvaluateRequest()
        for number, (request, key) in enumerate(zip(requests, _keys(len(requests)), strict=True)):
            item = asked.items.add(id=str(number), request=request).request
            item.idempotency_key = item.idempotency_key or key
        response = await self._connected().ask(
            lambda stub: stub.BatchEvaluate, asked, self._timeout, failure=_common_failure
        )
        results = response.results
        if len(results) != len(requests):
            raise NoDecision(f"{len(results)} answers to {len(requests)} questions")
        return [
            result.response
            if result.HasField("response")
            else NoDecision(f"policyd gave no decision ({result.status.message})")
            for result in results
        ]

    async def _answer(self, request: EvaluateRequest) -> EvaluateResponse:
        (key,) = _keys(1)
        asked = EvaluateRequest(idempotency_key=key)
        asked.MergeFrom(request)  # With the caller's own key, if there is one.
        return await self._connected().ask(
            lambda stub: stub.Evaluate, asked, self._timeout, is_patient=asked.min_revision > 0
        )


def _keys(number: int) -> list[str]:
    """Idempotency keys. A question keeps its own at each try, so that policyd logs it once."""
    now = f"{time.time_ns() // 1_000_000:012x}"
    digits = secrets.token_hex(10 * number)
    return [now + digits[begin : begin + 20] for begin in range(0, 20 * number, 20)]


def _common_failure(response: BatchEvaluateResponse) -> Failed | None:
    """Why nothing was decided, if it is the same for all: settings that are not there yet, say.

    Then it may be decided in a moment, or elsewhere.
    """
    results = response.results
    if not results or not results[0].HasField("status"):
        return None
    status = results[0].status
    if any(not one.HasField("status") or one.status.code != status.code for one in results):
        return None
    return failed_item(status.code, status.message)


def _batches(waiting: list[_Waiting]) -> Iterator[list[_Waiting]]:
    batch: list[_Waiting] = []
    size = 0
    for question in waiting:
        if question[0].min_revision:
            yield [question]  # policyd may wait for the revision, and nothing else should.
            continue
        size += question[0].ByteSize()
        if batch and (len(batch) == MAX_BATCH or size > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], question[0].ByteSize()
        batch.append(question)
    if batch:
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
    denied = denial.NO_DECISION
    answer.decision = DECISION_DENY
    answer.denial.http_status, answer.denial.body = denied.status, denied.body
    answer.denial.headers.extend(Header(name=name, value=text) for name, text in denied.headers)
    return answer


def _settle(future: asyncio.Future[EvaluateResponse], answer: _Answer) -> None:
    if future.done():  # Whoever asked has gone away.
        return
    if isinstance(answer, NoDecision):
        future.set_exception(answer)
    else:
        future.set_result(answer)
