"""One request on its way upstream, and its answer on the way back.

A client that leaves ends the exchange: what it asked for is no longer worth the upstream's work. So
while the upstream is asked and answers, a watcher waits for the client to leave, and then cancels
the task. An upload is received while it is sent upstream, so the watcher begins after it.
"""

import asyncio
import logging
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from gateway.describe import Scope, is_safe, text
from gateway.headers import RequestHeaders
from gateway.outcome import OutcomeRecorder
from gateway.upstream import (
    Body,
    Upload,
    Upstream,
    UpstreamBroke,
    UpstreamFailed,
)
from policyd.asgi.body import ClientGone, Receive
from policyd.asgi.reply import Reply, Send
from policyd.client.request_outcome import RequestOutcome
from policyd.descriptor.body_memory import Held
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    ENDING_CLIENT_LEFT,
    ENDING_COMPLETE,
    ENDING_NO_ANSWER,
    ENDING_UPSTREAM_BROKE,
    EvaluateResponse,
)

if TYPE_CHECKING:
    from gateway.request_traces import RequestTrace

log = logging.getLogger("gateway")


class Exchange:
    """One request and what became of it."""

    __slots__ = (
        *("headers", "held", "is_answered", "receive", "scope", "send"),
        *("answered", "asked", "began", "by", "decided", "operation", "status"),
        *("decision", "model", "outcome", "sent", "trace"),
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: RequestHeaders, held: Held
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers = headers
        self.held = held
        """The account of how much of its body the gateway holds."""
        self.is_answered = False
        """Whether the upstream's answer has begun to go to the client."""
        self.operation = ""
        """What its endpoint is for; "": no endpoint that policies apply to."""
        self.status = 0
        """The HTTP status of the answer to the client. 0: there is none yet."""
        self.by = ""
        """The actor whose answer it is: gateway, policyd, upstream; "": none yet."""
        self.began = perf_counter_ns()
        """When it came. This and the next three are in ns of perf_counter_ns(); 0: not yet."""
        self.asked = 0
        self.decided = 0
        self.answered = 0
        """When the head of the upstream's answer was complete."""

        self.model = ""
        """The model that the request names, cut."""
        self.decision: EvaluateResponse | None = None
        """The decision on it, once there is one."""
        self.outcome: RequestOutcome | None = None
        """The outcome that the gateway reports to policyd."""
        self.sent = 0
        """Bytes of the body that the client was sent."""
        self.trace: RequestTrace | None = None
        """Its place in a trace, where the gateway sends traces."""

    @property
    def path(self) -> str:
        """The path that the client sent, without its query."""
        return text(self.scope["raw_path"])

    @property
    def verdict(self) -> str:
        """What was decided: allowed, would_deny, denied; "" where nothing was."""
        decision = self.decision
        if decision is None:
            return ""
        if decision.decision != DECISION_ALLOW:
            return "denied"
        return "would_deny" if decision.would_deny else "allowed"

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to, as the decision log has it; "": none."""
        if self.decision is not None and self.decision.trace_id:
            return self.decision.trace_id
        return self.trace.server.context.trace if self.trace else ""

    @property
    def about(self) -> dict[str, str]:
        """What a log line may say about it."""
        about = {
            "method": self.scope["method"],
            "path": self.path,
            "operation": self.operation,
            "decision_id": self.decision.decision_id if self.decision else "",
            "api_key_id": self.decision.api_key_id if self.decision else "",
            "trace_id": self.trace_id,
        }
        return {name: value for name, value in about.items() if value}

    async def reply(self, reply: Reply, by: str = "gateway") -> None:
        """Answer with `reply`, which is `by` the gateway or policyd."""
        self.status, self.by, self.sent = reply.status, by, reply.size
        await reply.send(self.send)

    async def give_up(self, reply: Reply) -> None:
        """Answer with `reply`, unless the upstream's answer has begun, which is then cut off."""
        if not self.is_answered:
            self.is_answered = True
            await self.reply(reply)

    async def forward(
        self, upstream: Upstream, path: str, body: Body, recorder: OutcomeRecorder
    ) -> None:
        """Send the request to the absolute `path` of `upstream`, and relay the answer.

        Raises ClientGone where the client left during its upload.
        """
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(_watch(self.receive, body, task))
        try:
            await self._relay(upstream, path, body, recorder)
        except ClientGone:
            recorder.ending = ENDING_CLIENT_LEFT
            raise
        except asyncio.CancelledError:
            if not watcher.done():
                raise
            task.uncancel()  # It was the watcher: the client has left.
            recorder.ending = ENDING_CLIENT_LEFT
        finally:
            watcher.cancel()

    async def _relay(
        self, upstream: Upstream, path: str, body: Body, recorder: OutcomeRecorder
    ) -> None:
        scope = self.scope
        query = text(scope["query_string"])
        method = scope["method"]
        safe = is_safe(scope, self.headers)
        headers = self.trace.forwarded(self.headers) if self.trace else self.headers
        try:
            answer = await upstream.ask(method, path, query, headers, body, safe=safe)
        except UpstreamFailed as failure:
            if not failure.is_known:
                log.warning(
                    "no answer from upstream to %s %s: %s",
                    *(method, path, failure),
                    extra=self.about | {"status": failure.reply.status},
                )
            recorder.ending = ENDING_NO_ANSWER
            await self.reply(failure.reply)
            return
        self.is_answered = True
        self.answered = perf_counter_ns()
        self.status, self.by = answer.status, "upstream"
        recorder.begin_answer(answer)
        try:
            await answer.relay(self.send, recorder.feed)
            recorder.ending = ENDING_COMPLETE
        except UpstreamBroke as problem:
            # Returning before the response is complete makes the server close the connection.
            log.warning(
                "upstream broke off its answer to %s %s: %s",
                *(method, path, problem),
                extra=self.about | {"status": answer.status},
            )
            recorder.ending = ENDING_UPSTREAM_BROKE
        finally:
            self.sent = recorder.size
            answer.close()


async def _watch(receive: Receive, body: Body, task: asyncio.Task[Any]) -> None:
    """Cancel `task` when the client leaves."""
    if isinstance(body, Upload):
        await body.finished.wait()  # Until then the upload itself receives.
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
