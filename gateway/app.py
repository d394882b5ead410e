"""The gateway as a raw ASGI app: ask policyd about a request, then forward or refuse it.

async with Gateway(settings) as app:
    ...  # serve it
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

from gateway import replies
from gateway.describe import Scope, http_request, is_safe, is_too_large, text
from gateway.headers import RequestHeaders, read_request
from gateway.intake import Intake, Refused
from gateway.outcome import Course
from gateway.settings import Settings, policyd_client
from gateway.upstream import (
    Body,
    Upload,
    Upstream,
    UpstreamBroke,
    UpstreamFailed,
)
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
from policyd.client.aio import NoDecision, PolicyClient
from policyd.command.throttle import Throttle
from policyd.descriptor.body_memory import Held
from policyd.descriptor.describe import describe
from policyd.errors import PolicydError
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    ENDING_CLIENT_LEFT,
    ENDING_COMPLETE,
    ENDING_NO_ANSWER,
    ENDING_UPSTREAM_BROKE,
    EvaluateRequest,
    EvaluateResponse,
)

log = logging.getLogger("gateway")

Evaluate = Callable[[EvaluateRequest], Awaitable[EvaluateResponse]]


class Gateway:
    """The ASGI app. Use it as a context manager, in the event loop that serves it.

    `evaluate` decides in place of the policyd that `settings` name.
    """

    def __init__(self, settings: Settings, evaluate: Evaluate | None = None) -> None:
        self._settings = settings
        self._evaluate = evaluate
        self._policyd: PolicyClient | None = None
        self._upstream: Upstream
        self._intake: Intake
        self._undecided = _Tally()
        self._probes = Probes(self._not_ready)

    async def __aenter__(self) -> Self:
        settings = self._settings
        if self._evaluate is None:
            self._policyd = policyd_client(settings)
            self._evaluate = self._policyd.evaluate
        self._upstream = Upstream(settings)
        self._intake = Intake(
            settings, self._policyd.check_key if self._policyd else None, self._undecided.count
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._upstream.close()
        self._intake.close()
        if self._policyd is not None:
            await self._policyd.close()

    @property
    def held(self) -> int:
        """Bytes of large bodies that are held."""
        return self._intake.held

    def end(self, reason: str) -> None:
        """Say from now on that it is not ready."""
        self._probes.end(reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        held = self._intake.hold()
        exchange = _Exchange(scope, receive, send, read_request(scope["headers"]), held)
        try:
            with held:
                await self._serve(exchange)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            # The server is being stopped, and has waited long enough.
            await exchange.give_up(replies.STOPPING)
        except Exception:
            log.exception("a fault of the gateway; the request was not answered")
            await exchange.give_up(replies.FAULT)

    async def _serve(self, exchange: "_Exchange") -> None:
        refusal = _refusal(exchange)
        if refusal is not None:
            await refusal.send(exchange.send)
            return
        came = text(exchange.scope["raw_path"])
        if probed := await self._probes.answer(exchange.scope["method"], came):
            await Reply(*probed).send(exchange.send)
            return
        if exchange.scope["is_spare"]:
            await NO_ROOM.send(exchange.send)
            return
        prefix = self._upstream.prefix
        path = prefix.absolute(came)
        key = self._settings.api_key
        request = http_request(exchange.scope, path, exchange.headers, key)
        if prefix.restored(request.target.path or path) is None:
            await replies.OUTSIDE.send(exchange.send)
            return
        try:
            body, attributes = await self._intake.read(
                request, exchange.receive, exchange.headers, exchange.held
            )
        except Refused as refused:
            await refused.reply.send(exchange.send)
            return
        asked = describe(request, attributes)
        began = time.perf_counter_ns()
        verdict = await self._decide(asked)
        if isinstance(verdict, Reply):
            await verdict.send(exchange.send)
            return
        goes = prefix.restored(verdict.path or path)
        if goes is None:
            await replies.OUTSIDE.send(exchange.send)
            return
        course = Course(verdict.decision_id, began)
        try:
            await self._forward(exchange, goes, body, course)
        finally:
            if self._policyd is not None and verdict.decision_id:
                self._policyd.report(course.outcome())

    async def _not_ready(self) -> str:
        """Why a balancer should send requests elsewhere; "" where it need not."""
        # Where the operator lets requests pass without a decision, they pass here as anywhere.
        if self._policyd is None or self._settings.on_policy_error == "allow":
            return ""
        is_there = await self._policyd.can_reach(PATIENCE)
        return "" if is_there else "policyd cannot be reached"

    async def _decide(self, asked: EvaluateRequest) -> "Reply | _Permission":
        """The refusal, or the permission to forward."""
        assert self._evaluate is not None
        try:
            answer = await self._evaluate(asked)
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

    async def _forward(self, exchange: "_Exchange", path: str, body: Body, course: Course) -> None:
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(_watch(exchange.receive, body, task))
        try:
            await self._relay(exchange, path, body, course)
        except ClientGone:
            course.ending = ENDING_CLIENT_LEFT
            raise
        except asyncio.CancelledError:
            if not watcher.done():
                raise
            task.uncancel()  # The client has left, and nobody waits for an answer.
            course.ending = ENDING_CLIENT_LEFT
        finally:
            watcher.cancel()

    async def _relay(self, exchange: "_Exchange", path: str, body: Body, course: Course) -> None:
        scope = exchange.scope
        query = text(scope["query_string"])
        method = scope["method"]
        try:
            answer = await self._upstream.ask(
                method,
                path,
                query,
                exchange.headers,
                body,
                safe=is_safe(scope, exchange.headers),
            )
        except UpstreamFailed as failure:
            if not failure.is_known:
                log.warning("no answer from upstream to %s %s: %s", method, path, failure)
            course.ending = ENDING_NO_ANSWER
            await failure.reply.send(exchange.send)
            return
        exchange.is_answered = True
        course.answered(answer)
        try:
            await answer.relay(exchange.send, course.note)
            course.ending = ENDING_COMPLETE
        except UpstreamBroke as problem:
            # Returning before the response is complete makes the server cut the connection.
            log.warning("upstream broke off its answer to %s %s: %s", method, path, problem)
            course.ending = ENDING_UPSTREAM_BROKE
        finally:
            answer.close()


class _Permission(NamedTuple):
    """That a request may go upstream."""

    path: str = ""
    """The path to send upstream; empty for the one that came."""
    decision_id: str = ""
    """Empty where policyd could not be asked."""


class _Exchange:
    """One request and what became of it."""

    __slots__ = ("headers", "held", "is_answered", "receive", "scope", "send")

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: RequestHeaders, held: Held
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers = headers
        self.held = held
        """Its body, as far as it is held."""
        self.is_answered = False
        """Whether the upstream's answer has begun to go to the client."""

    async def give_up(self, reply: Reply) -> None:
        """Answer with `reply`, unless another answer has begun: then that one is cut."""
        if not self.is_answered:
            self.is_answered = True
            await reply.send(self.send)


class _Tally:
    """Requests that were not decided: counted, and logged at most once a second."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._throttle = Throttle(1)

    def count(self, outcome: str, problem: PolicydError) -> None:
        self._counts[outcome] = self._counts.get(outcome, 0) + 1
        if self._throttle.is_due():
            log.error("a request was %s (%d so far): %s", outcome, self._counts[outcome], problem)


def _refusal(exchange: _Exchange) -> Reply | None:
    """What the gateway answers by itself."""
    scope, headers = exchange.scope, exchange.headers
    if scope["method"] == "OPTIONS":
        return replies.PREFLIGHT
    if headers.wants_websocket:
        return WEBSOCKET
    if not scope["raw_path"].startswith(b"/"):
        return replies.BAD_PATH
    if headers.is_garbled:
        return replies.BAD_HEADER
    if is_too_large(scope["raw_path"], headers):
        return HEAD_TOO_LARGE
    return None


async def _watch(receive: Receive, body: Body, task: asyncio.Task[Any]) -> None:
    """Cancel `task` when the client leaves."""
    if isinstance(body, Upload):
        await body.finished.wait()  # Until then it is the upload that receives.
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
