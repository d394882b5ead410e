"""policyd.client with several policyds, of which some are gone, silent, slow or unwilling."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from gateway.settings import Settings
from policyd.client import NoDecision, PolicyClient, SyncPolicyClient
from policyd.client.connection import Connection
from policyd.client.http_connection import HttpConnection
from policyd.client.opening import CONNECTIONS, MAX_PATIENCE
from policyd.client.peers import BUSY
from policyd.client.targets import addresses
from policyd.client.transport import EVALUATE, Transport
from policyd.errors import SettingsError
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceServicer
from tests.support.peers import KINDS, serve
from tests.support.silent import SilentProxy
from tests.support.waiting import until

CODE = grpc.StatusCode
DESCRIPTOR = pb.EvaluateRequest(has_user=True)
SLOW = pb.EvaluateRequest(has_user=True, model="slow")
PATIENCE = 60
"""Seconds after which a test gives up: far more than any machine should take."""


class Peer(PolicyServiceServicer):
    """A policyd that allows everything, or ends calls with `code`, and keeps the requests and
    reports that it gets.
    """

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.asked: list[pb.EvaluateRequest] = []
        self.reported: list[str] = []
        self.slow = asyncio.Event()
        """A request with the model "slow" waits for it."""
        self.target = ""

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        self.asked.append(request)
        await self._end(context)
        if request.model == "slow":
            await self.slow.wait()
        return pb.EvaluateResponse(decision=pb.DECISION_ALLOW, decision_id="1")

    async def BatchEvaluate(
        self, request: pb.BatchEvaluateRequest, context: Any
    ) -> pb.BatchEvaluateResponse:
        self.asked += [item.request for item in request.items]
        await self._end(context)
        allowed = pb.EvaluateResponse(decision=pb.DECISION_ALLOW, decision_id="1")
        results = [pb.BatchEvaluateResult(id=item.id, response=allowed) for item in request.items]
        return pb.BatchEvaluateResponse(results=results)

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        self.reported += [outcome.decision_id for outcome in request.outcomes]
        return pb.ReportOutcomeResponse(accepted=len(request.outcomes))

    async def _end(self, context: Any) -> None:
        if self.code is not None:
            await context.abort(self.code, "as the test says")


Start = Callable[..., Any]
Target = Callable[[SilentProxy], str]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What the client asks over."""
    return str(request.param)


@pytest_asyncio.fixture
async def make_peer(kind: str) -> AsyncIterator[Start]:
    """Starts a Peer at 127.0.0.1, or at another host."""
    stops = []

    async def start_one(host: str = "127.0.0.1") -> Peer:
        peer = Peer()
        peer.target, stop = await serve(peer, kind, host)
        stops.append(stop)
        return peer

    yield start_one
    for stop in stops:
        await stop()


@pytest.fixture
def nowhere(kind: str, unused_port: Callable[[], int]) -> Callable[[], str]:
    """Gives a target at which nothing listens."""
    return lambda: at(kind, f"127.0.0.1:{unused_port()}")


def at(kind: str, place: str) -> str:
    """The target of HOST:PORT."""
    return f"http://{place}" if kind == "http" else place


@contextmanager
def silent_before(peer: Peer) -> Iterator[SilentProxy]:
    """A proxy before a peer, which can fall silent."""
    with SilentProxy(("127.0.0.1", int(peer.target.rpartition(":")[2]))) as proxy:
        yield proxy


@pytest.fixture
def target(kind: str) -> Callable[[SilentProxy], str]:
    """Gives the target of a proxy."""
    return lambda proxy: at(kind, f"{proxy.host}:{proxy.port}")


async def ask(client: PolicyClient, number: int) -> list[float]:
    """Ask one request after the other, and give the seconds that each answer took.

    Raises NoDecision.
    """
    took = []
    for _ in range(number):
        begun = time.monotonic()
        assert (await client.evaluate(DESCRIPTOR)).decision_id == "1"
        took.append(time.monotonic() - begun)
    return took


def held_up(took: list[float]) -> int:
    """How many of the answers waited for a silent peer, for as long as the client waits at most."""
    return sum(seconds >= MAX_PATIENCE for seconds in took)


def test_addresses() -> None:
    """Addresses may be separated by commas or form a list.

    Each counts once, and an empty one is an error.
    """
    assert addresses("a:1") == ("a:1",)
    assert addresses("a:1, b:2,a:1") == addresses(["a:1", "b:2"]) == ("a:1", "b:2")
    for wrong in ("", ",", "a:1,", [], ["a:1", " "]):
        with pytest.raises(ValueError, match="HOST:PORT"):
            addresses(wrong)
        with pytest.raises(ValueError, match="HOST:PORT"):
            SyncPolicyClient(wrong)


def test_what_the_gateway_takes() -> None:
    """The gateway takes the same addresses, and validates each."""
    for right in ("a:1,b:2", "a:1, [::1]:2", "dns:///policyd:50051"):
        assert Settings(policyd=right).policyd == right
    for wrong in ("a:1,", "a:1,b", "dns:///policyd", ","):
        with pytest.raises(SettingsError, match="--policyd takes HOST:PORT"):
            Settings(policyd=wrong)


def test_what_the_gateway_takes_over_http() -> None:
    """It asks over HTTP, all its addresses alike, and over TLS where they are https://."""
    for right in ("http://a:1,http://b:2", "https://a", " https://[::1]:2/"):
        assert Settings(policyd=right).asks_over_http
    assert str(Settings(policyd="https://a").policyd_addresses[0]) == "a:443"
    assert Settings(policyd="https://a", policyd_ca=Path("ca.pem")).asks_over_tls
    for wrong, told in (
        ({"policyd": "http://a:1,b:2"}, "addresses of one kind"),
        ({"policyd": "a:1,http://b:2"}, "addresses of one kind"),
        ({"policyd": "http://a:1,https://b:2"}, "addresses of one kind"),
        ({"policyd": "http://a:1/path"}, "without a path"),
        ({"policyd": "ftp://a:1"}, "takes HOST:PORT"),
        ({"policyd": "http://a:1", "policyd_tls": True}, "needs https://"),
        ({"policyd": "http://a:1", "policyd_ca": Path("ca.pem")}, "or https://"),
    ):
        with pytest.raises(SettingsError, match=told):
            Settings(**wrong)


@pytest.mark.parametrize("kind", ["grpc"])
async def test_how_many_connections(target: Target, make_peer: Start) -> None:
    """A client makes two connections to a single address, and one to each of several."""
    first, second = await make_peer(), await make_peer()
    with silent_before(first) as one, silent_before(second) as other:
        async with PolicyClient(target(one), timeout=PATIENCE) as client:
            await ask(client, 20)
            await until(lambda: one.accepted == CONNECTIONS)
        async with PolicyClient([target(one), target(other)], timeout=PATIENCE) as client:
            await ask(client, 20)
            await until(lambda: other.accepted == 1)
        assert one.accepted == CONNECTIONS + 1


@pytest.mark.parametrize("kind", ["http"])
async def test_how_many_connections_over_http(target: Target, make_peer: Start) -> None:
    """Over HTTP there are as many connections as calls at once."""
    peer = await make_peer()
    with silent_before(peer) as proxy:
        async with PolicyClient(target(proxy), timeout=PATIENCE) as client:
            await ask(client, 20)
            assert proxy.accepted == 1
            await ask_busily(client, peer)
            assert proxy.accepted == 2 * BUSY


async def test_one_is_dead(make_peer: Start, nowhere: Callable[[], str]) -> None:
    """The other policyd answers every request."""
    peer = await make_peer()
    dead = nowhere()
    async with PolicyClient(f"{dead},{peer.target}", timeout=PATIENCE) as client:
        await ask(client, 50)
        await asyncio.gather(*(client.evaluate(DESCRIPTOR) for _ in range(50)))
        assert await client.can_reach(PATIENCE)
    assert len(peer.asked) == 100


@pytest.mark.slow
async def test_one_is_silent(target: Target, make_peer: Start) -> None:
    """The client waits for a silent peer once, asks the other meanwhile, and asks the first again
    when it answers.
    """
    first, second = await make_peer(), await make_peer()
    with silent_before(first) as one:
        async with PolicyClient([target(one), second.target], timeout=8) as client:
            await ask(client, 10)
            one.be_silent()
            took = await ask(client, 60)
            assert held_up(took) <= 6  # Half of them, if the client did not remember.
            assert await client.can_reach(PATIENCE)
            one.speak()
            seen = len(first.asked)
            async with asyncio.timeout(PATIENCE):
                while len(first.asked) == seen:
                    await ask_busily(client, first, second)


async def ask_busily(client: PolicyClient, *peers: Peer) -> None:
    """Ask one request while enough others are under way to make each connection busy."""
    held = []
    for _ in range(2 * BUSY):
        before = sum(len(peer.asked) for peer in peers)
        held.append(asyncio.create_task(client.evaluate(SLOW)))
        await until(lambda before=before: sum(len(peer.asked) for peer in peers) > before)
    for peer in peers:
        peer.slow.set()
    await asyncio.gather(*held)
    for peer in peers:
        peer.slow.clear()


@pytest.mark.slow
@pytest.mark.parametrize("is_first", [True, False])
async def test_one_has_never_spoken(target: Target, make_peer: Start, is_first: bool) -> None:
    """A peer that accepts connections and never answers costs no request its answer."""
    peer = await make_peer()
    with silent_before(peer) as mute:
        mute.be_silent()
        targets = [target(mute), peer.target] if is_first else [peer.target, target(mute)]
        async with PolicyClient(targets, timeout=8) as client:
            await ask(client, 30)


@pytest.mark.slow
async def test_connections_that_are_lost(target: Target, make_peer: Start) -> None:
    """Connections that a firewall forgets are replaced, and every request gets an answer."""
    peer = await make_peer()
    with silent_before(peer) as proxy:
        async with PolicyClient(target(proxy), timeout=8) as client:
            await ask(client, 10)
            for _ in range(2):
                proxy.lose()
                took = await ask(client, 20)
                assert held_up(took) <= CONNECTIONS + 2


async def test_all_are_dead(nowhere: Callable[[], str]) -> None:
    """It is an outage if all peers are dead, and the caller learns it by the deadline."""
    targets = [nowhere() for _ in range(2)]
    async with PolicyClient(targets, timeout=0.5) as client:
        with pytest.raises(NoDecision, match="UNAVAILABLE") as caught:
            await asyncio.wait_for(client.evaluate(DESCRIPTOR), PATIENCE)
        assert not await client.can_reach(0.5)
    assert caught.value.is_outage


@pytest.mark.slow
async def test_all_are_silent(target: Target, make_peer: Start) -> None:
    """It is also an outage if all peers are silent; once they answer, they are asked again."""
    peer = await make_peer()
    with silent_before(peer) as one, silent_before(peer) as other:
        async with PolicyClient([target(one), target(other)], timeout=1) as client:
            await ask(client, 5)
            one.be_silent()
            other.be_silent()
            with pytest.raises(NoDecision) as caught:
                await asyncio.wait_for(client.evaluate(DESCRIPTOR), PATIENCE)
            assert caught.value.is_outage
            assert not await client.can_reach(0.5)
            one.speak()
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await ask(client, 1)
                        break
                    except NoDecision:
                        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_a_name_with_several_addresses(kind: str, make_peer: Start, host: str) -> None:
    """A name may have several addresses, as localhost does on most machines.

    Any that answers will do. (gRPC knows ::1 as localhost where the machine does not list it.)
    """
    peer = await make_peer(host)
    port = peer.target.rpartition(":")[2]
    names = [f"localhost:{port}", f"dns:///localhost:{port}"]
    if kind == "http":
        names = [f"http://{'localhost' if host == '127.0.0.1' else host}:{port}"]
    for name in names:
        async with PolicyClient(name, timeout=PATIENCE) as client:
            await ask(client, 5)


@pytest.mark.parametrize("code", [CODE.RESOURCE_EXHAUSTED, CODE.FAILED_PRECONDITION])
async def test_one_would_not_decide(make_peer: Start, code: grpc.StatusCode) -> None:
    """Where one policyd would not decide, for a full log for instance, the client asks the other,
    once. Where none would, it is no outage.
    """
    first, second = await make_peer(), await make_peer()
    first.code = code
    async with PolicyClient([first.target, second.target], timeout=PATIENCE) as client:
        await ask(client, 10)
        assert len(second.asked) == 10
        assert len(first.asked) <= 10
        second.code = code
        first.asked.clear()
        with pytest.raises(NoDecision, match=code.name) as caught:
            await client.evaluate(DESCRIPTOR)
    assert not caught.value.is_outage
    assert (len(first.asked), len(second.asked)) == (1, 11)


async def test_one_would_not_decide_and_the_other_is_dead(
    make_peer: Start, nowhere: Callable[[], str]
) -> None:
    """A request that one policyd refused to decide about is never allowed, though the other is
    dead."""
    peer = await make_peer()
    peer.code = CODE.RESOURCE_EXHAUSTED
    targets = [peer.target, nowhere()]
    for _ in range(4):  # The client may ask the peers in either order.
        async with PolicyClient(targets, timeout=0.5, on_error="allow") as client:
            answer = await client.evaluate(DESCRIPTOR)
        assert answer.denial.http_status == 503
        assert "RESOURCE_EXHAUSTED" in answer.explanation.summary


def evaluate(connection: Transport, request: pb.EvaluateRequest) -> Any:
    return connection.ask(EVALUATE, request, PATIENCE, is_patient=False)


@pytest.mark.parametrize("kind", ["grpc"])
async def test_a_connection_that_answers_others_waits(make_peer: Start) -> None:
    """A connection counts as silent only if no answer at all arrives on it."""
    peer = await make_peer()
    connection = Connection(peer.target, None, None, 0.3)
    slow = asyncio.create_task(evaluate(connection, SLOW))
    for _ in range(60):
        await evaluate(connection, DESCRIPTOR)
        await asyncio.sleep(0.02)
    assert not slow.done()
    assert not connection.is_away
    peer.slow.set()
    assert (await slow).decision == pb.DECISION_ALLOW
    await connection.close()


@pytest.mark.parametrize("kind", ["http"])
async def test_a_worker_that_hangs(make_peer: Start) -> None:
    """Behind one address there may be several workers. A call that one of them does not answer ends
    once calls that began later have been answered, and the address is not away for it."""
    peer = await make_peer()
    connection = HttpConnection(peer.target, None, "", 0.3)
    hanging = asyncio.create_task(evaluate(connection, SLOW))
    await until(lambda: bool(peer.asked))
    while not hanging.done():
        await evaluate(connection, DESCRIPTOR)
        assert not connection.is_away
    with pytest.raises(NoDecision, match=f"no answer from {peer.target} for 0.3 s") as caught:
        await hanging
    assert caught.value.is_outage
    await connection.close()


@pytest.mark.parametrize("kind", ["http"])
async def test_a_peer_that_is_slow(make_peer: Start) -> None:
    """Where all calls take long, none of them is ended for it."""
    peer = await make_peer()
    connection = HttpConnection(peer.target, None, "", 0.3)
    slow = [asyncio.create_task(evaluate(connection, SLOW)) for _ in range(4)]
    await until(lambda: len(peer.asked) == 4)
    await asyncio.sleep(0.2)
    peer.slow.set()
    assert {(await one).decision for one in slow} == {pb.DECISION_ALLOW}
    assert not connection.is_away
    await connection.close()


@pytest.mark.slow
async def test_a_client_that_stood_still(kind: str, target: Target, make_peer: Start) -> None:
    """A client's own pause is no silence of its peer: it gives up no connection for it."""
    peer = await make_peer()
    with silent_before(peer) as proxy:
        async with PolicyClient(target(proxy), timeout=1) as client:
            await ask(client, 5)
            wanted = CONNECTIONS if kind == "grpc" else 1
            await until(lambda: proxy.accepted == wanted)
            for _ in range(3):
                asked = asyncio.create_task(client.evaluate(DESCRIPTOR))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                time.sleep(0.6)  # noqa: ASYNC251  # It stands still like a suspended machine.
                assert (await asked).decision_id == "1"
        assert proxy.accepted == wanted


# --- keys ---------------------------------------------------------------------------------------


async def test_each_request_has_a_key(make_peer: Start) -> None:
    """Each request gets a fresh idempotency key, alone or in a batch, in the order of time.

    The client keeps a caller's own key, and leaves the caller's message as it is.
    """
    peer = await make_peer()
    own = pb.EvaluateRequest(has_user=True, idempotency_key="own")
    async with PolicyClient(peer.target, timeout=PATIENCE) as client:
        await ask(client, 3)
        await asyncio.gather(*(client.evaluate(DESCRIPTOR) for _ in range(3)), client.evaluate(own))
        await client.evaluate(own)
    keys = [request.idempotency_key for request in peer.asked]
    assert keys.count("own") == 2
    made = [key for key in keys if key != "own"]
    assert len(set(made)) == 6
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in made)
    assert all(abs(int(key[:12], 16) / 1000 - time.time()) < PATIENCE for key in made)
    assert not DESCRIPTOR.idempotency_key


async def test_a_second_try_has_the_same_key(make_peer: Start) -> None:
    """A second try has the same idempotency key, so that policyd decides once; so has a batch."""
    first, second = await make_peer(), await make_peer()
    first.code = second.code = CODE.UNAVAILABLE
    for number in (1, 3):
        async with PolicyClient([first.target, second.target], timeout=0.5) as client:
            asked = [client.evaluate(DESCRIPTOR) for _ in range(number)]
            await asyncio.gather(*asked, return_exceptions=True)
        keys = [request.idempotency_key for peer in (first, second) for request in peer.asked]
        assert len(keys) > 2 * number
        assert len(set(keys)) == number
        first.asked.clear()
        second.asked.clear()


# --- calls that wait ----------------------------------------------------------------------------


async def test_a_revision_that_is_waited_for(make_peer: Start) -> None:
    """A request that waits for a revision holds up no other, counts as no silence, and is never
    allowed if the revision is not reached.
    """
    peer = await make_peer()
    late = pb.EvaluateRequest(has_user=True, min_revision=9, model="slow")
    async with PolicyClient(peer.target, timeout=2, on_error="allow") as client:
        await ask(client, 1)
        asked = asyncio.create_task(client.evaluate(late))
        others = await asyncio.gather(*(client.evaluate(DESCRIPTOR) for _ in range(5)))
        assert {answer.decision_id for answer in others} == {"1"}
        assert not asked.done()
        assert (await asked).denial.http_status == 503
    assert sum(request.min_revision == 9 for request in peer.asked) == 1


@pytest.mark.slow
async def test_a_revision_that_is_waited_for_elsewhere(
    make_peer: Start, nowhere: Callable[[], str]
) -> None:
    """The request is not allowed either if another policyd could not be reached before."""
    peer = await make_peer()
    late = pb.EvaluateRequest(has_user=True, min_revision=9, model="slow")
    gone = nowhere()
    for _ in range(6):  # The client may ask the peers in either order.
        async with PolicyClient([gone, peer.target], timeout=0.5, on_error="allow") as client:
            assert (await client.evaluate(late)).denial.http_status == 503


async def test_outcomes(target: Target, make_peer: Start) -> None:
    """A peer that falls silent loses no outcome."""
    first, second = await make_peer(), await make_peer()
    with silent_before(first) as one, silent_before(second) as other:
        async with PolicyClient([target(one), target(other)], timeout=1) as client:
            await ask(client, 2)
            for number in range(6):
                (one if number % 2 else other).speak()
                (other if number % 2 else one).be_silent()
                for _ in range(50):
                    client.report(pb.Outcome(decision_id=f"{number}"))
                await asyncio.sleep(0.3)
            one.speak()
            other.speak()
            await until(lambda: len(set(first.reported + second.reported)) == 6)
        assert client.outcomes_lost == 0


def test_threads_and_several(nowhere: Callable[[], str]) -> None:
    """SyncPolicyClient takes several addresses as well."""
    targets = [nowhere() for _ in range(2)]
    for given in (targets, ",".join(targets)):
        with SyncPolicyClient(given, timeout=0.3, on_error="deny") as client:
            assert client.evaluate(DESCRIPTOR).denial.http_status == 503
