"""policyd.client, for asyncio and for threads, against real servers that fail in every way."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from policyd.asgi import reply as replies
from policyd.client import NoDecision, OnError, PolicyClient, SyncPolicyClient
from policyd.engine import denial
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server
from tests.support.processes import Policyd

CODE = grpc.StatusCode
DESCRIPTOR = pb.EvaluateRequest(has_user=True)
DENIED = pb.EvaluateRequest(headers=[pb.Header(name="x-usagepanda-api-key", value="up-unknown")])
DENIED.has_user = True


class Failing(PolicyServiceServicer):
    """A policyd that fails the first calls with `codes`, and allows every other."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self.codes = list(codes)
        self.calls: list[str] = []
        self.reported: list[str] = []
        self.asked = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        await self._begin("Evaluate", context)
        return pb.EvaluateResponse(decision=pb.DECISION_ALLOW, decision_id="1")

    async def BatchEvaluate(
        self, request: pb.BatchEvaluateRequest, context: Any
    ) -> pb.BatchEvaluateResponse:
        await self._begin("BatchEvaluate", context)
        allowed = pb.EvaluateResponse(decision=pb.DECISION_ALLOW, decision_id="1")
        results = [pb.BatchEvaluateResult(id=item.id, response=allowed) for item in request.items]
        return pb.BatchEvaluateResponse(results=results)

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        self.reported += [outcome.decision_id for outcome in request.outcomes]
        return pb.ReportOutcomeResponse(accepted=len(request.outcomes))

    async def _begin(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.asked.set()
        await self.hold.wait()
        if self.codes:
            await context.abort(self.codes.pop(0), "as the test says")


class Serving:
    """Makes servers of Failing on free ports, and stops them."""

    def __init__(self) -> None:
        self.servers: list[grpc.aio.Server] = []

    async def __call__(self, servicer: Failing, port: int = 0) -> str:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_PolicyServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        self.servers.append(server)
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        for server in self.servers:
            await server.stop(None)


@pytest_asyncio.fixture
async def serving() -> AsyncIterator[Serving]:
    servers = Serving()
    yield servers
    await servers.stop()


@pytest.fixture
def own_policyd(tmp_path: Path) -> Iterator[Policyd]:
    """A policyd that the test may freeze."""
    server = Policyd(tmp_path)
    yield server
    server.send(signal.SIGCONT)
    assert server.stop() == 0


async def test_unavailable_is_tried_again(serving: Serving) -> None:
    """A caller sees no single UNAVAILABLE, neither for a request nor for a batch."""
    for count, name in ((1, "Evaluate"), (3, "BatchEvaluate")):
        servicer = Failing(CODE.UNAVAILABLE)
        async with PolicyClient(await serving(servicer), timeout=30) as client:
            answers = await asyncio.gather(*(client.evaluate(DESCRIPTOR) for _ in range(count)))
        assert {answer.decision for answer in answers} == {pb.DECISION_ALLOW}
        assert servicer.calls == [name, name]


async def test_it_is_not_tried_for_ever(serving: Serving) -> None:
    """The client tries until the deadline, with growing pauses, and then there is no decision."""
    servicer = Failing(*[CODE.UNAVAILABLE] * 1000)
    async with PolicyClient(await serving(servicer), timeout=1) as client:
        with pytest.raises(NoDecision, match="UNAVAILABLE: as the test says") as caught:
            await asyncio.wait_for(client.evaluate(DESCRIPTOR), 30)
    assert caught.value.is_outage
    assert 6 <= len(servicer.calls) <= 50


@pytest.mark.parametrize(
    "code", [CODE.RESOURCE_EXHAUSTED, CODE.INVALID_ARGUMENT, CODE.INTERNAL, CODE.UNAUTHENTICATED]
)
async def test_other_errors_are_not_tried_again(serving: Serving, code: grpc.StatusCode) -> None:
    """The client does not repeat a call that policyd would not decide, nor allow it."""
    servicer = Failing(code, code, code)
    target = await serving(servicer)
    async with PolicyClient(target, timeout=30) as client:
        with pytest.raises(NoDecision) as caught:
            await client.evaluate(DESCRIPTOR)
    assert not caught.value.is_outage
    for on_error in ("deny", "allow"):
        async with PolicyClient(target, timeout=30, on_error=on_error) as client:
            assert (await client.evaluate(DESCRIPTOR)).decision == pb.DECISION_DENY
    assert len(servicer.calls) == 3


@pytest.mark.parametrize("on_error", ["deny", "allow"])
async def test_a_server_that_is_gone(unused_port: Callable[[], int], on_error: OnError) -> None:
    """With `deny` the client answers with a 503 of its own, with `allow` it allows.

    The explanation names the outage.
    """
    async with PolicyClient(f"127.0.0.1:{unused_port()}", on_error=on_error) as client:
        answer = await client.evaluate(DESCRIPTOR)
    assert answer.decision_id == ""
    assert answer.explanation.summary.startswith("No decision: policyd gave no decision (UNAV")
    if on_error == "allow":
        assert answer.decision == pb.DECISION_ALLOW
        assert not answer.HasField("denial")
    else:
        assert answer.decision == pb.DECISION_DENY
        assert answer.denial.http_status == 503
        assert answer.denial.body == denial.NO_DECISION.body
        assert answer.denial.headers[-1] == pb.Header(name="Retry-After", value="1")


async def test_the_denial_is_the_gateways() -> None:
    """A Python gateway denies in the words of policyd-gateway; Retry-After spreads the clients."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await replies.NO_DECISION.send(send)
    headers = [(n.decode("latin-1"), v.decode()) for n, v in sent[0]["headers"]]
    assert sent[0]["status"] == denial.NO_DECISION.status
    *same, retry = headers[: len(denial.NO_DECISION.headers)]
    assert (*same, ("Retry-After", "1")) == denial.NO_DECISION.headers
    assert retry in {("Retry-After", seconds) for seconds in ("1", "2", "3")}
    assert sent[1]["body"] == denial.NO_DECISION.body


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["raise", "deny", "allow"])
async def test_a_server_that_hangs(own_policyd: Policyd, on_error: OnError) -> None:
    """The client waits for a server that hangs no longer than the deadline."""
    async with PolicyClient(own_policyd.grpc, timeout=3, on_error=on_error) as client:
        assert (await client.evaluate(DESCRIPTOR)).decision_id
        own_policyd.send(signal.SIGSTOP)
        if on_error == "raise":
            with pytest.raises(NoDecision, match=r"DEADLINE_EXCEEDED|receiving SETTINGS") as caught:
                await asyncio.wait_for(client.evaluate(DESCRIPTOR), 30)
            assert caught.value.is_outage
        else:
            answer = await asyncio.wait_for(client.evaluate(DESCRIPTOR), 30)
            assert answer.HasField("denial") == (on_error == "deny")


async def test_a_server_that_restarts(serving: Serving, unused_port: Callable[[], int]) -> None:
    """The same client finds a restarted server again at the same address."""
    port = unused_port()
    async with PolicyClient(await serving(Failing(), port), timeout=2) as client:
        assert (await client.evaluate(DESCRIPTOR)).decision_id == "1"
        await serving.stop()
        with pytest.raises(NoDecision, match="UNAVAILABLE"):
            await client.evaluate(DESCRIPTOR)
        await serving(Failing(), port)
        assert (await _asked_until_answered(client)).decision_id == "1"


async def _asked_until_answered(client: PolicyClient) -> pb.EvaluateResponse:
    deadline = time.monotonic() + 60
    while True:
        try:
            return await client.evaluate(DESCRIPTOR)
        except NoDecision:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_closing_with_calls_under_way(serving: Serving) -> None:
    """Calls under way end with NoDecision at once when the client is closed."""
    servicer = Failing()
    servicer.hold.clear()
    client = PolicyClient(await serving(servicer), timeout=60)
    asked = asyncio.create_task(client.evaluate(DESCRIPTOR))
    await asyncio.wait_for(servicer.asked.wait(), 30)
    await client.close()
    with pytest.raises(NoDecision, match="closed"):
        await asyncio.wait_for(asked, 30)
    servicer.hold.set()


# --- threads -----------------------------------------------------------------------------------


def test_threads(policyd: Policyd) -> None:
    """Many threads ask at once, and each gets its own answer."""
    key = policyd.create_key("enforce")

    def ask(number: int) -> bool:
        asked = pb.EvaluateRequest(key=key, has_user=number % 3 == 0)
        return client.evaluate(asked).decision == pb.DECISION_ALLOW

    with SyncPolicyClient(policyd.grpc, timeout=30) as client, ThreadPoolExecutor(32) as threads:
        allowed = list(threads.map(ask, range(600)))
    assert allowed == [number % 3 == 0 for number in range(600)]


async def test_threads_coalesce(serving: Serving) -> None:
    """Requests that threads make while a call is under way travel in few calls."""
    servicer = Failing()
    target = await serving(servicer)

    def ask_all() -> list[pb.EvaluateResponse]:
        together = threading.Barrier(32)
        with SyncPolicyClient(target, timeout=60) as client, ThreadPoolExecutor(32) as threads:
            waiting = [
                threads.submit(lambda: (together.wait(60), client.evaluate(DESCRIPTOR))[1])
                for _ in range(32)
            ]
            return [future.result(60) for future in waiting]

    answers = await asyncio.to_thread(ask_all)
    assert {answer.decision for answer in answers} == {pb.DECISION_ALLOW}
    assert len(servicer.calls) < 32


async def test_threads_report(serving: Serving) -> None:
    """What threads report has arrived when the client is closed, and later reports do no harm."""
    servicer = Failing()
    target = await serving(servicer)

    def report_all() -> None:
        with SyncPolicyClient(target, timeout=60) as client:
            for number in range(3):
                client.report(pb.Outcome(decision_id=str(number)))
        client.report(pb.Outcome(decision_id="late"))

    await asyncio.to_thread(report_all)
    assert servicer.reported == ["0", "1", "2"]


@pytest.mark.slow
def test_a_thread_without_a_server(unused_port: Callable[[], int]) -> None:
    """The client for threads obeys on_error as well."""
    target = f"127.0.0.1:{unused_port()}"
    with SyncPolicyClient(target) as client, pytest.raises(NoDecision, match="UNAVAILABLE"):
        client.evaluate(DESCRIPTOR)
    with SyncPolicyClient(target, on_error="deny") as client:
        assert client.evaluate(DESCRIPTOR).denial.http_status == 503
    with SyncPolicyClient(target, on_error="allow") as client:
        assert client.evaluate(DESCRIPTOR).decision == pb.DECISION_ALLOW


@pytest.mark.slow
def test_a_thread_that_waits_while_another_closes(own_policyd: Policyd) -> None:
    """A waiting thread gets NoDecision at once, as do later ones; closing twice does no harm."""
    client = SyncPolicyClient(own_policyd.grpc, timeout=100)
    assert client.evaluate(DESCRIPTOR).decision_id
    own_policyd.send(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.evaluate, DESCRIPTOR)
        time.sleep(0.2)
        client.close()
        with pytest.raises(NoDecision, match="closed"):
            asked.result(60)
    client.close()
    with pytest.raises(NoDecision, match="closed"):
        client.evaluate(DESCRIPTOR)


def test_what_it_cannot_be_made_of() -> None:
    """The constructor raises on wrong arguments, and leaves no thread behind."""
    before = threading.active_count()
    with pytest.raises((TypeError, AttributeError)):
        SyncPolicyClient("127.0.0.1:1", credentials="no credentials")  # type: ignore[arg-type]  # A mistake.
    assert threading.active_count() <= before + 1


def test_a_denial_is_no_error(policyd: Policyd) -> None:
    """A denial is an answer, whatever on_error is."""
    with SyncPolicyClient(policyd.grpc, timeout=30, on_error="allow") as client:
        answer = client.evaluate(DENIED)
    assert answer.decision == pb.DECISION_DENY
    assert answer.denial.http_status == 403
