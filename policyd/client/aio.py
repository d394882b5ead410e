"""What a Python gateway asks policyd with: a deadline, and many questions in one call.

    async with PolicyClient("policyd-1:50051,policyd-2:50051") as policyd:
        answer = await policyd.evaluate(EvaluateRequest(key=key, has_user=False))

Questions that are asked in the same turn of the event loop go out as one BatchEvaluate, which costs
both sides a fraction of a call for each. What became of the requests is reported in batches, too.
policyd.client is the same for threads.
"""

import asyncio
from types import TracebackType
from typing import Self

import grpc
from grpc import ChannelCredentials

from policyd.client import forking
from policyd.client.batches import CLOSED, Batches
from policyd.client.fallback import OnError, instead
from policyd.client.peers import Peers, Targets, addresses
from policyd.client.reporter import Reporter
from policyd.client.statuses import Failed
from policyd.errors import NoDecision
from policyd.v1.policy_pb2 import (
    CheckKeyRequest,
    CheckKeyResponse,
    EvaluateRequest,
    EvaluateResponse,
    Outcome,
    ReportOutcomeRequest,
    ReportOutcomeResponse,
)

_REPORT_TIMEOUT = 5.0
"""Seconds that a call with outcomes may take: nobody waits for it."""


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
        self._batches = Batches(self._connected, timeout)
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
        if peers := self._peers:
            await peers.close()
        # gRPC stops its threads when the channels have gone, and then the process may fork.
        self._peers = None
        forking.in_use.discard(self)

    async def evaluate(self, request: EvaluateRequest) -> EvaluateResponse:
        """Ask for a decision. Where none comes in time, for whatever cause, `on_error` holds."""
        try:
            return await self._batches.ask(request)
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


def tls_credentials(
    authorities: bytes | None = None, key: bytes | None = None, certificate: bytes | None = None
) -> ChannelCredentials:
    """What PolicyClient takes to ask over TLS, all as PEM.

    `authorities` are those that policyd's certificate may be of, the system's if not given.
    `key` and `certificate` are what a policyd with --tls-client-ca wants to see.
    """
    return grpc.ssl_channel_credentials(authorities, key, certificate)
