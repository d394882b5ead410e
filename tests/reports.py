"""A policyd that keeps what is reported to it, for tests of those who report."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from policyd import api_keys
from policyd.key_table import KeyTable
from policyd.model import KeyChange, KeyChanges, KeySettings, Mode
from policyd.services.policy import PolicyServicer
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server

PATIENCE = 60
"""Seconds after which a test gives up: far more than any machine should take."""


class Recorder(PolicyServicer):
    """Decides as policyd does, and keeps what it decided and what was reported."""

    def __init__(self, keys: KeyTable, key: str) -> None:
        super().__init__(keys, Mode.OFF)
        self.key = key
        """An API key that enforces user IDs."""
        self.address = ""
        self.asked: list[pb.EvaluateRequest] = []
        self.allowed: list[str] = []
        """The IDs of the decisions that allowed a request."""
        self.batches: list[list[pb.Outcome]] = []
        self.evaluating: grpc.StatusCode | None = None
        """What Evaluate fails with."""
        self.reporting: grpc.StatusCode | None = None
        """What ReportOutcome fails with."""
        self.rejects: Callable[[pb.Outcome], bool] = lambda _: False
        self.calls = 0
        """Of ReportOutcome."""
        self.gate = asyncio.Event()
        """ReportOutcome waits for it."""
        self.gate.set()

    @property
    def outcomes(self) -> list[pb.Outcome]:
        """Those that it took."""
        return [outcome for batch in self.batches for outcome in batch]

    def evaluate(self, request: pb.EvaluateRequest) -> pb.EvaluateResponse:
        answer = super().evaluate(request)
        self.asked.append(request)
        if answer.decision == pb.DECISION_ALLOW:
            self.allowed.append(answer.decision_id)
        return answer

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:  # noqa: N802
        if self.evaluating is not None:
            await context.abort(self.evaluating, "as the test wants it")
        return await super().Evaluate(request, context)

    async def ReportOutcome(  # noqa: N802
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        self.calls += 1
        await self.gate.wait()
        if self.reporting is not None:
            await context.abort(self.reporting, "as the test wants it")
        rejected = [
            pb.RejectedOutcome(index=index, message="it is malformed")
            for index, outcome in enumerate(request.outcomes)
            if self.rejects(outcome)
        ]
        self.batches.append([one for one in request.outcomes if not self.rejects(one)])
        accepted = len(request.outcomes) - len(rejected)
        return pb.ReportOutcomeResponse(accepted=accepted, rejected=rejected)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen, again at the same address after the first time."""
        server = grpc.aio.server()
        add_PolicyServiceServicer_to_server(self, server)
        port = server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)


async def make_recorder() -> Recorder:
    """One that does not listen yet."""
    key = api_keys.generate()
    settings = KeySettings("key_test", Mode.ENFORCE)
    keys = KeyTable(lambda _: KeyChanges(1, (KeyChange(api_keys.digest(key), settings),)))
    await keys.refresh()
    return Recorder(keys, key)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what others bring about."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - they set no event here
            await asyncio.sleep(0.005)
