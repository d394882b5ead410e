"""Every status that a call can end with, for every client of policyd.

A few may let a request pass where the operator lets requests pass while policyd is away; all others
never do.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import pytest
import pytest_asyncio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gateway.server import Server
from gateway.settings import Settings
from policyd.client import NoDecision, PolicyClient, SyncPolicyClient, peers, statuses
from policyd.client.statuses import Meaning
from policyd.command.address import Address
from policyd.services import errors
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceServicer
from tests.support.peers import KINDS, serve
from tests.support.raw_http import CHAT_WITH_USER, post, serving_demo

CODE = grpc.StatusCode
IN_SESSION = pytest.mark.asyncio(loop_scope="session")
AWAY = {CODE.UNAVAILABLE, CODE.DEADLINE_EXCEEDED}
AGAIN = AWAY | {CODE.CANCELLED}
"""The statuses after which a client tries again until the deadline."""
REASONS = sorted({reason for _, reason in errors.TABLE.values()} | {"INTERNAL", "ONE_OF_TOMORROW"})


class Status(NamedTuple):
    """The status that a call ends with."""

    code: grpc.StatusCode
    reason: str = ""
    """The reason of the ErrorInfo; empty for none."""

    @property
    def is_outage(self) -> bool:
        """Whether policyd was not reached in time, in the words of policy.proto."""
        return self.code in AWAY and not self.reason

    @property
    def timeout(self) -> float:
        """Seconds: short if the client waits them out, and otherwise more than any machine should
        take.
        """
        return 1.0 if self.code in AGAIN else 60.0


BARE = [Status(code) for code in CODE if code is not CODE.OK]
TOLD = [Status(code, reason) for code in CODE if code is not CODE.OK for reason in REASONS]


class Refusing(PolicyServiceServicer):
    """A policyd that ends each call with the status in its trace ID: CODE or CODE-REASON."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        named = [
            one.value for one in request.headers if one.name.lower() == "x-usagepanda-trace-id"
        ]
        await self._end(request.trace_id or named[0], context)
        raise AssertionError("it has ended")

    async def BatchEvaluate(
        self, request: pb.BatchEvaluateRequest, context: Any
    ) -> pb.BatchEvaluateResponse:
        results = []
        for item in request.items:
            code, _, reason = item.request.trace_id.partition("-")
            status = pb.ItemStatus(
                code=grpc.StatusCode[code].value[0], message="as told", reason=reason
            )
            results.append(pb.BatchEvaluateResult(id=item.id, status=status))
        return pb.BatchEvaluateResponse(results=results)

    async def _end(self, wanted: str, context: Any) -> None:
        self.calls[wanted] = self.calls.get(wanted, 0) + 1
        name, _, reason = wanted.partition("-")
        code = grpc.StatusCode[name]
        details: tuple[tuple[str, bytes], ...] = ()
        if reason:
            info = any_pb2.Any()
            info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=errors.DOMAIN))
            status = status_pb2.Status(code=code.value[0], message="as told", details=[info])
            details = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(code, "as told", details)


class Running(NamedTuple):
    """A policyd that decides nothing, and its address."""

    servicer: Refusing
    target: str


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=KINDS)
async def refusing(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A policyd that decides nothing, asked over gRPC, and over HTTP."""
    async with refusing_policyd(request.param) as running:
        yield running


@asynccontextmanager
async def refusing_policyd(kind: str) -> AsyncIterator[Running]:
    """A policyd that decides nothing until the end of the block."""
    servicer = Refusing()
    target, stop = await serve(servicer, kind)
    try:
        yield Running(servicer, target)
    finally:
        await stop()


def descriptor(status: Status) -> pb.EvaluateRequest:
    """A request whose call ends with this status."""
    wanted = "-".join(filter(None, (status.code.name, status.reason)))
    return pb.EvaluateRequest(has_user=True, trace_id=wanted)


def check(status: Status, answer: pb.EvaluateResponse) -> None:
    """The request is allowed if policyd was away, and otherwise not."""
    allowed = answer.decision == pb.DECISION_ALLOW
    assert allowed == status.is_outage, status
    assert allowed or answer.denial.http_status == 503


def test_the_table_is_whole() -> None:
    """Each status has a meaning, and only the two that mean an outage may let a request pass."""
    assert set(statuses.TABLE) == set(CODE)
    outages = {code for code, meaning in statuses.TABLE.items() if meaning is Meaning.NOT_REACHED}
    assert outages == AWAY


@pytest.mark.slow
@IN_SESSION
async def test_policy_client(refusing: Running) -> None:
    """on_error="allow" allows a request if policyd was not reached in time, and never one that it
    would not decide.
    """

    async def ask(status: Status) -> None:
        async with PolicyClient(
            refusing.target, timeout=status.timeout, on_error="allow"
        ) as client:
            check(status, await client.evaluate(descriptor(status)))
        async with PolicyClient(refusing.target, timeout=status.timeout) as client:
            with pytest.raises(NoDecision) as caught:
                await client.evaluate(descriptor(status))
        assert caught.value.is_outage == status.is_outage, status

    every = BARE + TOLD
    for begin in range(0, len(every), 20):
        await asyncio.gather(*map(ask, every[begin : begin + 20]))


@IN_SESSION
async def test_what_grpc_does_not_end(refusing: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that policyd would not decide stays so, even if gRPC stalls and keeps no deadline."""
    monkeypatch.setattr(peers, "_MARGIN", -0.8)
    for status in (Status(code, reason) for code in AGAIN for reason in ("", "LOG_FULL")):
        async with PolicyClient(refusing.target, timeout=1, on_error="allow") as client:
            check(status, await client.evaluate(descriptor(status)))


@IN_SESSION
async def test_a_batch(refusing: Running) -> None:
    """An item to which policyd gave a status is never allowed: policyd was there to give it."""
    for batch in (BARE, *([Status(code)] * 3 for code in AWAY)):
        async with PolicyClient(refusing.target, timeout=1, on_error="allow") as client:
            answers = await asyncio.gather(*(client.evaluate(descriptor(one)) for one in batch))
        assert {answer.decision for answer in answers} == {pb.DECISION_DENY}


@pytest.mark.slow
@IN_SESSION
async def test_sync_policy_client(refusing: Running) -> None:
    """SyncPolicyClient behaves the same."""

    def ask(status: Status) -> None:
        with SyncPolicyClient(refusing.target, timeout=status.timeout, on_error="allow") as client:
            check(status, client.evaluate(descriptor(status)))

    for status in [*BARE, *(Status(code, "LOG_FULL") for code in AWAY)]:
        await asyncio.to_thread(ask, status)


@pytest.mark.slow
@IN_SESSION
async def test_the_gateway(refusing: Running) -> None:
    """--on-policy-error allow forwards a request if policyd was away, and answers 503 if policyd
    would not decide.
    """
    async with serving_demo() as demo:
        settings = Settings(
            listen=Address("127.0.0.1", 0),
            upstream=demo.url,
            policyd=refusing.target,
            policy_timeout=1.0,
            on_policy_error="allow",
        )
        async with Server(settings) as server:
            told = [Status(code, reason) for code in AWAY for reason in REASONS[:2]]
            for status in BARE + told:
                header = ("x-usagepanda-trace-id", descriptor(status).trace_id)
                response = await post(server.url, "up-" + "0" * 48, CHAT_WITH_USER, header)
                assert response.status == (200 if status.is_outage else 503), status
        assert len(demo.app.record) == len(AWAY)


@pytest.mark.slow
@IN_SESSION
async def test_what_is_tried_again(refusing: Running) -> None:
    """The client repeats a call whose cause may pass, and makes any other once."""
    calls = refusing.servicer.calls

    async def tries(status: Status) -> int:
        calls.pop(descriptor(status).trace_id, None)
        async with PolicyClient(refusing.target, timeout=status.timeout, on_error="deny") as client:
            await client.evaluate(descriptor(status))
        return calls[descriptor(status).trace_id]

    for status in BARE:
        number = await tries(status)
        assert (number > 2) if status.code in AGAIN else (number == 1), (status, number)
    assert await tries(Status(CODE.UNAVAILABLE, "STORE_UNAVAILABLE")) > 2
    assert await tries(Status(CODE.FAILED_PRECONDITION, "REVISION_NOT_REACHED")) == 1
