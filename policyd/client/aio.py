"""PolicyClient: how a program with an event loop asks policyd.

    async with PolicyClient("policyd-1:50051,policyd-2:50051") as policyd:
        answer = await policyd.evaluate(EvaluateRequest(key=key, has_user=False))

Every evaluation has a deadline. Those of one turn of the event loop travel in one call, and
outcomes are reported in batches, too. policyd.client.sync is the same for threads.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from ssl import SSLContext

import grpc
from grpc import ChannelCredentials

from policyd.client import forking
from policyd.client.batches import CLOSED, Batches
from policyd.client.fallback import OnError, instead
from policyd.client.opening import Opening
from policyd.client.peers import Peers
from policyd.client.reporter import Reporter
from policyd.client.statuses import Failed, bare
from policyd.client.targets import Targets
from policyd.client.transport import CHECK_KEY, REPORT_OUTCOME
from policyd.command.serving_settings import POLICY_TIMEOUT
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
"""Seconds that a call with outcomes may take. No request waits for it."""


class PolicyClient(AbstractAsyncContextManager["PolicyClient"]):
    """Asks a policyd at `target`, and waits at most `timeout` seconds for an answer. In that time
    it tries again, with growing pauses.

    `target` is HOST:PORT, or several of them, separated by commas or as a list; any of them may
    answer. A host may be a name with several addresses. A policyd that cannot be reached, or is
    silent for a fourth of the timeout (at least 0.1 s and at most 1 s), is left for another until
    it answers again. There are two connections to a single HOST:PORT, else one to each.

    `target` may also be http://HOST:PORT or https://HOST:PORT, where policyd has its --http, or
    several of these. It is then asked over HTTP, which costs less than half of gRPC's CPU and
    promises the same; it wants aiohttp, which policyd[http] brings.

    `credentials` make the connections TLS: see tls_credentials(). Over HTTP, https:// does that,
    and `credentials` may be an ssl.SSLContext in place of the default one. `token` is the one that
    a policyd with --caller-token-file asks for. `on_error` says what evaluate() does without a
    decision: see OnError.

    A client belongs to the event loop that it is first used in. It opens its connections there, so
    a client that was made before a fork, and not used yet, may be used in a child. Once it has been
    used, no client works in a child that is forked: there evaluate() raises NoDecision, also that
    of new clients, and gRPC itself may crash the child (see forking.py). So close the client before
    the process forks. Raises ValueError or TypeError where it cannot be made of these arguments.
    """

    def __init__(
        self,
        target: Targets,
        *,
        timeout: float = POLICY_TIMEOUT,
        credentials: ChannelCredentials | SSLContext | None = None,
        token: str = "",
        on_error: OnError = "raise",
    ) -> None:
        self._timeout = timeout
        self._on_error = on_error
        self._opening = Opening(target, credentials, token, timeout)
        self._peers: Peers | None = None
        self._closed = False
        self._batches = Batches(self._connected, timeout)
        self._reporter = Reporter(self._report, Outcome.ByteSize)

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Report the outcomes that wait, for up to 2 s, and close the connections. Evaluations
        under way end with NoDecision."""
        if forking.is_broken():  # Its connections belong to the parent of this process.
            self._closed = True
            return
        await self._reporter.close()
        self._closed = True
        if peers := self._peers:
            await peers.close()
        # gRPC stops its threads when all channels are gone, and then the process may fork.
        self._peers = None
        forking.in_use.discard(self)

    async def evaluate(self, request: EvaluateRequest) -> EvaluateResponse:
        """Ask for the decision on a request. If none comes in time, for any cause, `on_error`
        applies: NoDecision is raised, or the answer has no decision_id."""
        try:
            return await self._batches.ask(request)
        except NoDecision as problem:
            return instead(problem, self._on_error)

    async def check_key(self, request: CheckKeyRequest) -> CheckKeyResponse:
        """Ask whether a key is in force, and whether deciding needs the request's body, before the
        body is read.

        An older policyd without this method counts as needing the body. Raises NoDecision.
        """
        problem: NoDecision
        try:
            return await self._connected().ask(CHECK_KEY, request, self._timeout)
        except Failed as failed:
            if failed.code is grpc.StatusCode.UNIMPLEMENTED:
                return CheckKeyResponse(in_force=True, needs_body=True)
            problem = bare(failed)
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise
            problem = NoDecision(CLOSED)
        raise problem

    def report(self, outcome: Outcome) -> None:
        """Report the outcome of a request that was allowed. It returns at once and never fails.

        Outcomes are sent in batches. While policyd cannot be reached, up to 20,000 of them wait.
        Those beyond that are lost: they are counted, and logged now and then. An older policyd
        without this method gets none.
        """
        forking.use(self)  # Its queue belongs to this process, too.
        self._reporter.report(outcome)

    def take_outcomes(self) -> list[Outcome]:
        """Take back the outcomes that are not sent yet, to report them through another client."""
        return self._reporter.take()

    @property
    def outcomes_lost(self) -> int:
        """How many outcomes that report() was given policyd will not get."""
        return self._reporter.lost

    async def can_reach(self, timeout: float) -> bool:
        """Whether a policyd answers within `timeout` seconds. Its health does not matter: it
        decides as long as it answers."""
        try:
            return await self._connected().can_reach(timeout)
        except NoDecision:
            return False

    async def can_decide(self, timeout: float) -> bool:
        """Whether a policyd answers within `timeout` seconds, and its health service "decisions"
        does not say that requests get no decision."""
        try:
            return await self._connected().can_decide(timeout)
        except NoDecision:
            return False

    async def _report(self, outcomes: list[Outcome]) -> list[str]:
        request = ReportOutcomeRequest(outcomes=outcomes)
        answer: ReportOutcomeResponse = await self._connected().ask(
            REPORT_OUTCOME, request, _REPORT_TIMEOUT
        )
        return [one.message for one in answer.rejected]

    def _connected(self) -> Peers:
        if self._closed:
            raise NoDecision(CLOSED)
        forking.check()
        if self._peers is None:
            self._peers = Peers(self._opening.open())
            forking.use(self)
        return self._peers


def tls_credentials(
    authorities: bytes | None = None, key: bytes | None = None, certificate: bytes | None = None
) -> ChannelCredentials:
    """Credentials for PolicyClient to ask over TLS. All arguments are PEM.

    `authorities` are those that may have signed policyd's certificate, by default the system's.
    `key` and `certificate` are the client's own, which a policyd with --tls-client-ca asks for.
    """
    return grpc.ssl_channel_credentials(authorities, key, certificate)
