"""The gateway as a raw ASGI app: describe a request, ask policyd, then forward or deny it.

    async with Gateway(settings) as app:
        ...  # serve it

Every request takes these steps, and each of them may answer it:

    _own_reply   what the gateway answers by itself: a preflight, a request it cannot forward
    probes       /healthz and /readyz
    intake       the body, as far as a policy may need it; 408 or 503 where it cannot be taken in
    _decide      policyd's decision: the denial, or a 503 where there is none
    exchange     the upstream's answer, or a 502 or 504 where there is none
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple, Self

from gateway import replies
from gateway.describe import Scope, http_request, is_too_large, text
from gateway.end_users import EndUserHeaders
from gateway.exchange import Exchange
from gateway.headers import read_request
from gateway.intake import Intake, Rejected
from gateway.outcome import OutcomeRecorder
from gateway.policyd_client import local_client, policyd_client
from gateway.settings import Settings
from gateway.telemetry import access_of, traces_of
from gateway.undecided import Undecided
from gateway.upstream import Body, Upstream
from policyd.asgi.body import ClientGone, Receive
from policyd.asgi.probes import PATIENCE, Probes
from policyd.asgi.reply import (
    HEAD_TOO_LARGE,
    NO_DECISION,
    NO_ROOM,
    WEBSOCKET,
    Reply,
    Send,
    denied,
)
from policyd.client import NoDecision, PolicyClient
from policyd.client.request_outcome import RequestOutcome
from policyd.descriptor.describe import HttpRequest, describe
from policyd.descriptor.headers import TRACE_HEADER, wants_websocket
from policyd.descriptor.identifiers import BodyAttributes
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    EvaluateRequest,
    EvaluateResponse,
)

if TYPE_CHECKING:
    from gateway.request_access import RequestAccess
    from gateway.request_metrics import RequestMetrics
    from gateway.request_traces import RequestTraces
    from policyd.client.local import LocalPolicyClient

log = logging.getLogger("gateway")

_PROBE = "probe"
"""Stands for the actor that answers a probe: probes are not counted."""
Evaluate = Callable[[EvaluateRequest], Awaitable[EvaluateResponse]]


class Gateway:
    """The ASGI app. Use it as a context manager, in the event loop that serves it.

    `evaluate` decides in place of the policyd whose address `settings` give.
    """

    def __init__(self, settings: Settings, evaluate: Evaluate | None = None) -> None:
        self._settings = settings
        self._evaluate = evaluate
        self._policyd: PolicyClient | LocalPolicyClient | None = None
        self.local: LocalPolicyClient | None = None
        """The client that decides here by policyd's settings, with --decide local."""
        self._upstream: Upstream
        self._intake: Intake
        self._end_users = EndUserHeaders(settings.end_user_headers, settings.trusted_networks)
        self.metrics = self._measure() if settings.metrics is not None else None
        self._undecided = Undecided(self.metrics)
        self._access = access_of(settings)
        self._traces: RequestTraces | None = None
        self._watching: tuple[RequestMetrics | RequestAccess | RequestTraces, ...] = ()
        self.streams = 0
        """Answers of the upstream that are being passed on."""
        self._probes = Probes(self._not_ready)
        self._begun = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as begun:
            await self._begin(begun)
            self._begun = begun.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._begun.aclose()

    async def _begin(self, begun: AsyncExitStack) -> None:
        settings = self._settings
        self._traces = traces_of(settings)
        if self._traces is not None:
            begun.push_async_callback(asyncio.to_thread, self._traces.close)
        if self._access is not None:
            begun.callback(self._access.end)
        watching = (self.metrics, self._access, self._traces)
        self._watching = tuple(one for one in watching if one is not None)
        if self._evaluate is None:
            self._policyd = await self._client(begun)
            self._evaluate = self._policyd.evaluate
        self._intake = Intake(
            settings, self._policyd.check_key if self._policyd else None, self._undecided.count
        )
        begun.callback(self._intake.close)
        self._upstream = Upstream(settings)
        begun.push_async_callback(self._upstream.close)

    async def _client(self, begun: AsyncExitStack) -> "PolicyClient | LocalPolicyClient":
        if not self._settings.is_local:
            return await begun.enter_async_context(policyd_client(self._settings))
        self.local = await self._local_client().__aenter__()
        begun.push_async_callback(self.local.close, self._settings.carrying)
        return self.local

    @property
    def knows_settings(self) -> bool:
        """Whether there are settings to decide by, if the gateway decides by itself."""
        return self.local is None or self.local.staleness is not None

    @property
    def readers(self) -> dict[int, bool]:
        """The processes that read large bodies, by process ID: whether each has a body."""
        return self._intake.readers

    @property
    def held(self) -> int:
        """Bytes of large bodies that are held."""
        return self._intake.held

    @property
    def outcomes_lost(self) -> int:
        """Outcomes that policyd will not get."""
        return self._policyd.outcomes_lost if self._policyd else 0

    @property
    def is_breaker_open(self) -> bool:
        """Whether the gateway makes no new connections to the upstream for now."""
        return self._upstream.is_down

    def _measure(self) -> "RequestMetrics":
        # Imported late, so that a gateway without --metrics starts sooner.
        from gateway.request_metrics import RequestMetrics

        return RequestMetrics(self)

    def _local_client(self) -> "LocalPolicyClient":
        return local_client(self._settings, self._traces.tracer if self._traces else None)

    def end(self, reason: str) -> None:
        """Report from now on that the gateway is not ready, and why."""
        self._probes.end(reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        held = self._intake.hold()
        headers = read_request(scope["headers"], self._end_users.trust(scope["client"]))
        exchange = Exchange(scope, receive, send, headers, held)
        if self._traces is not None:
            exchange.trace = self._traces.begin(headers)
        try:
            with held:
                await self._serve(exchange)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            # The gateway is stopping, and its grace is over.
            await exchange.give_up(replies.STOPPING)
        except Exception:
            log.exception(
                "a fault of the gateway; the request was not answered", extra=exchange.about
            )
            await exchange.give_up(replies.FAULT)
        finally:
            if self._watching and exchange.by != _PROBE:
                now = time.perf_counter_ns()
                for one in self._watching:
                    one.served(exchange, now)

    async def _serve(self, exchange: Exchange) -> None:
        own_reply = _own_reply(exchange)
        if own_reply is not None:
            await exchange.reply(own_reply)
            return
        came = text(exchange.scope["raw_path"])
        if probed := await self._probes.answer(exchange.scope["method"], came):
            await exchange.reply(Reply(*probed), _PROBE)
            return
        if exchange.scope["is_spare"]:
            await exchange.reply(NO_ROOM)
            return
        await self._pass_on(exchange, came)

    async def _pass_on(self, exchange: Exchange, came: str) -> None:
        """Ask policyd about a request for the path `came`, and forward or deny it."""
        prefix = self._upstream.prefix
        path = prefix.absolute(came)
        request = http_request(exchange.scope, path, exchange.headers, self._settings.api_key)
        if endpoint := request.target.endpoint:
            exchange.operation = endpoint.operation
        if prefix.restored(request.target.path or path) is None:
            await exchange.reply(replies.OUTSIDE)
            return
        try:
            body, attributes = await self._intake.read(
                request, exchange.receive, exchange.headers, exchange.held
            )
        except Rejected as rejected:
            await exchange.reply(rejected.reply)
            return
        asked = _described(exchange, request, attributes)
        exchange.asked = time.perf_counter_ns()
        verdict = await self._decide(asked, exchange)
        exchange.decided = time.perf_counter_ns()
        if isinstance(verdict, Reply):
            await exchange.reply(verdict, "gateway" if verdict is NO_DECISION else "policyd")
            return
        goes = prefix.restored(verdict.path or path)
        if goes is None:
            await exchange.reply(replies.OUTSIDE)
            return
        await self._forward(exchange, goes, body, verdict.decision_id)

    async def _forward(self, exchange: Exchange, path: str, body: Body, decision_id: str) -> None:
        recorder = OutcomeRecorder(decision_id, exchange.asked)
        self.streams += 1
        try:
            await exchange.forward(self._upstream, path, body, recorder)
        finally:
            self.streams -= 1
            if self._policyd is not None and decision_id:
                exchange.outcome = recorder.outcome()
                self._report(exchange.outcome)

    def _report(self, outcome: RequestOutcome) -> None:
        if self.local is not None:
            self.local.record(outcome)
        elif self._policyd is not None:
            self._policyd.report(outcome.message())
        if self.metrics is not None:
            self.metrics.used(outcome)

    async def _not_ready(self) -> str:
        """Why a load balancer should send requests elsewhere; "" where it need not."""
        # Where the operator lets requests pass without a decision, policyd is not needed.
        if self._policyd is None or self._settings.on_policy_error == "allow":
            return ""
        if self.local is not None:
            return self.local.unready
        if not await self._policyd.can_reach(PATIENCE):
            return "policyd cannot be reached"
        is_deciding = await self._policyd.can_decide(PATIENCE)
        return "" if is_deciding else "policyd gives no decisions: its /readyz and its log say why"

    async def _decide(self, asked: EvaluateRequest, exchange: Exchange) -> "Reply | _Permission":
        """What policyd decides: the reply to the client, or the permission to forward."""
        assert self._evaluate is not None
        try:
            if self.local is None or exchange.trace is None:
                answer = await self._evaluate(asked)
            else:
                answer = await self.local.evaluate(asked, exchange.trace.ask)
            if answer.decision in (DECISION_ALLOW, DECISION_DENY):
                exchange.decision = answer
            if answer.decision == DECISION_ALLOW:
                return _Permission(answer.upstream_path, answer.decision_id)
            if answer.decision == DECISION_DENY:
                return denied(answer)
            raise NoDecision(f"policyd answered with a decision of {answer.decision}")
        except NoDecision as problem:
            if self._settings.on_policy_error == "allow" and problem.is_outage:
                self._undecided.count("forwarded unchecked", problem)
                return _Permission()
            self._undecided.count("refused", problem)
            return NO_DECISION


class _Permission(NamedTuple):
    """The permission to forward a request."""

    path: str = ""
    """The path to send upstream; empty for the client's own."""
    decision_id: str = ""
    """Empty where policyd gave no decision and the operator lets such requests pass."""


def _described(
    exchange: Exchange, request: HttpRequest, attributes: BodyAttributes
) -> EvaluateRequest:
    """What policyd is asked about a request."""
    trace = exchange.trace
    if trace is not None:
        trace.begin_ask(exchange.headers.values)
    asked = describe(request, attributes)
    exchange.model = asked.model
    if trace is not None:
        trace.name(asked, exchange.headers.first(TRACE_HEADER))
    return asked


def _own_reply(exchange: Exchange) -> Reply | None:
    """What the gateway answers by itself, without asking policyd; None where it asks."""
    scope, headers = exchange.scope, exchange.headers
    if scope["method"] == "OPTIONS":
        return replies.PREFLIGHT
    if wants_websocket(headers.values):
        return WEBSOCKET
    if not scope["raw_path"].startswith(b"/"):
        return replies.BAD_PATH
    if headers.is_garbled:
        return replies.BAD_HEADER
    if is_too_large(scope["raw_path"], headers):
        return HEAD_TOO_LARGE
    return None
