"""A policyd that keeps the reports that it gets, for tests of gateways and clients."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc

from policyd.decider import Decider
from policyd.decision_log.record import Record, Verdict
from policyd.descriptor.body_memory import Bodies
from policyd.engine.settings import KeyChange, KeyChanges, KeySettings
from policyd.engine.states import Mode
from policyd.keys import api_key
from policyd.keys.defaults import Defaults
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE
from policyd.services.policy import PolicyServicer
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server
from tests.support.raw_http import post

PATIENCE = 60
"""Seconds after which a test gives up: far more than any machine should take."""


class Recorder(PolicyServicer):
    """Behaves as policyd does, and keeps its decisions and the reports."""

    def __init__(self, keys: StoredKeyTable, key: str) -> None:
        defaults = Defaults(keys)
        decider = Decider(keys, defaults, secrets.token_hex(6), self._keep, Bodies(2**29))
        super().__init__(decider, partial(defaults.trusted, "grpc"))
        self.key = key
        """An API key that enforces user IDs."""
        self.address = ""
        self.decisions: list[Record] = []
        self.batches: list[list[pb.Outcome]] = []
        self.evaluating: grpc.StatusCode | None = None
        """The status that Evaluate fails with; None if it does not."""
        self.reporting: grpc.StatusCode | None = None
        """The status that ReportOutcome fails with; None if it does not."""
        self.calls = 0
        """The number of calls of ReportOutcome."""
        self.gate = asyncio.Event()
        """ReportOutcome waits for it."""
        self.gate.set()

    @property
    def outcomes(self) -> list[pb.Outcome]:
        """The outcomes that it took."""
        return [outcome for batch in self.batches for outcome in batch]

    @property
    def allowed(self) -> list[str]:
        """The IDs of the decisions that allowed a request."""
        return [one.id for one in self.decisions if one.verdict is not Verdict.DENIED]

    def _keep(self, entries: Sequence[object]) -> None:
        self.decisions += [entry for entry in entries if isinstance(entry, Record)]

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        if self.evaluating is not None:
            await context.abort(self.evaluating, "as the test wants it")
        return await super().Evaluate(request, context)

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        self.calls += 1
        await self.gate.wait()
        if self.reporting is not None:
            await context.abort(self.reporting, "as the test wants it")
        answer = await super().ReportOutcome(request, context)
        rejected = {one.index for one in answer.rejected}
        taken = [one for index, one in enumerate(request.outcomes) if index not in rejected]
        self.batches.append(taken)
        return answer

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Listen, at the same address each time."""
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
    """A Recorder that does not listen yet."""
    key = api_key.generate()
    settings = KeySettings("key_test", TABLE.with_original(Mode.ENFORCE))
    keys = StoredKeyTable(lambda *_: KeyChanges(1, (KeyChange(api_key.digest(key), settings),)))
    await keys.refresh()
    return Recorder(keys, key)


# Requests and reports


def encode(value: object) -> bytes:
    """The value as JSON."""
    return json.dumps(value).encode()


def chat(model: str = "gpt-4o-mini", **more: object) -> bytes:
    """The body of a request that is allowed."""
    return encode({"model": model, "messages": [{"content": "a b c"}], "user": "u-1", **more})


def tokens(outcome: pb.Outcome) -> tuple[int | None, ...]:
    """The input, output and cached tokens; None where they are not known."""
    names = ("input_tokens", "output_tokens", "cached_tokens")
    given = {field.name: value for field, value in outcome.ListFields()}
    return tuple(given.get(name) for name in names)


def check_times(outcome: pb.Outcome) -> None:
    """Check that the times are known, and in their order."""
    first, last = (time.ToNanoseconds() for time in (outcome.time_to_first_byte, outcome.duration))
    assert 0 < first <= last


@asynccontextmanager
async def load(url: str, key: str) -> AsyncIterator[list[int]]:
    """Clients that send requests again and again; the statuses of their answers."""
    statuses: list[int] = []
    going = True

    async def keep_asking(stream: bool) -> None:
        while going:
            response = await post(url, key, chat(stream=stream))
            statuses.append(response.status)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as clients:
        for number in range(6):
            clients.create_task(keep_asking(number % 2 == 0))
        yield statuses
        going = False
