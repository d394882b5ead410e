"""Servers are replaced or drained under load: nothing is lost, and everything has an end.

Every program is a real process. `pytest --log-level=info -rP` shows the counts.
"""

import asyncio
import json
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from policyd.asgi.listener import Listener
from policyd.client import PolicyClient
from policyd.command.address import Address, open_socket
from policyd.store import Store
from policyd.v1.policy_pb2 import DECISION_ALLOW, DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.faults.test_faults import is_running
from tests.support.health import health_stub
from tests.support.limits import wide_limits
from tests.support.load import (
    DECIDED,
    PATIENCE,
    WAITS,
    Load,
    MakeStack,
    Stack,
    ask,
    keys,
    under_load,
)
from tests.support.processes import Policyd, Program
from tests.support.stack import Gateway
from tests.support.waiting import until

log = logging.getLogger(__name__)

TIMES = int(os.environ.get("POLICYD_TEST_ROLLINGS", "2"))
PAUSE = float(os.environ.get("POLICYD_TEST_PAUSE", "12"))
"""Seconds for which everything stands still."""
REPLACED = "all workers are replaced"
NOT_SERVING = HealthCheckResponse.NOT_SERVING
Start = Callable[..., Any]


def told(program: Program, words: str) -> int:
    """The number of lines of its log that contain these words."""
    return sum(words in line for line in program.errors)


def children(program: Program, module: str = "worker") -> set[int]:
    """The processes that it has started and that run `module`."""
    path = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    found = {int(word) for word in path.read_text().split()}
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found if is_running(pid)}
    return {pid for pid, line in lines.items() if module.encode() in line}


async def roll(program: Program) -> None:
    """Have the server's workers replaced."""
    done = told(program, REPLACED)
    program.send(signal.SIGHUP)
    await until(lambda: told(program, REPLACED) > done)


def restart_gateway(stack: Stack, *flags: str) -> None:
    """Put a gateway with other flags in the place of the stack's."""
    given = ("--policy-timeout", WAITS, *flags)
    stack.gateway = stack.start(Gateway, stack.policyd.grpc, stack.upstream.url, *given)


# Rolling


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", ["policyd", "gateway"])
@pytest.mark.timeout(120 + 30 * TIMES)
async def test_rolling(make_stack: MakeStack, which: str, workers: int) -> None:
    """All workers are replaced, again and again, and every request gets its decision."""
    flags = ("--workers", str(workers))
    stack = make_stack(*(flags if which == "policyd" else ()))
    restart_gateway(stack, *(flags if which == "gateway" else ()))
    program = stack.policyd if which == "policyd" else stack.gateway
    async with under_load(stack) as load:
        for _ in range(TIMES):
            before = children(program)
            await roll(program)
            after = children(program)
            assert len(after) == workers
            assert not after & before
            await load.more(40, *DECIDED)
    log.info("%d times: %s of %d requests", TIMES, load.statuses(), load.sent)
    log.info("%s", "".join(stack.gateway.errors))
    assert set(load.statuses()) == DECIDED
    assert await asyncio.to_thread(program.stop) == 0
    assert not told(program, "Traceback")
    assert not told(program, "killed")


@pytest.mark.parametrize("workers", [1, 2])
async def test_new_connections_while_policyd_rolls(
    start: Start, tmp_path: Path, workers: int
) -> None:
    """A client that connects anew for each call, and never retries, is always answered, over gRPC
    and over HTTP.
    """
    flags = ("--workers", str(workers), "--http", "127.0.0.1:0")
    policyd = start(Policyd, tmp_path, *flags)
    key = policyd.create_key("enforce")
    async with new_connections(policyd, key) as counted:
        for _ in range(TIMES):
            await roll(policyd)
            done = counted.total()
            await until(lambda begun=done: counted.total() > begun + 20)
    log.info("%s", counted)
    assert set(counted) == {"grpc OK", "http 200"}


@asynccontextmanager
async def new_connections(policyd: Policyd, key: str) -> AsyncIterator[Counter[str]]:
    """Make calls, each on a connection of its own. Gives their results."""
    counted: Counter[str] = Counter()
    stopping = asyncio.Event()
    descriptor = EvaluateRequest(key=key, has_user=True)

    async def call() -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(policyd.grpc, options=options) as channel:
            try:
                await PolicyServiceStub(channel).Evaluate(descriptor, timeout=PATIENCE)
                counted["grpc OK"] += 1
            except grpc.aio.AioRpcError as error:
                counted[f"grpc {error.code().name}: {error.details()}"] += 1

    async def post() -> None:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        body = json.dumps({"key": key, "hasUser": True})
        async with aiohttp.ClientSession() as http:
            try:
                url = f"http://{policyd.http}/v1/evaluate"
                async with http.post(url, data=body, headers=headers) as answer:
                    await answer.read()
                    counted[f"http {answer.status}"] += 1
            except aiohttp.ClientError as error:
                counted[f"http {error}"] += 1

    async def again_and_again(one: Callable[[], Any]) -> None:
        while not stopping.is_set():
            await one()
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as clients:
        for one in (call, post, call, post):
            clients.create_task(again_and_again(one))
        yield counted
        stopping.set()


async def test_rolling_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    """No replaced worker counts as running, and every decision is in the log."""
    policyd = start(Policyd, tmp_path, "--workers", "2")
    key = policyd.create_key("enforce")
    store = Store(policyd.database_url)
    descriptor = EvaluateRequest(key=key, has_user=True)
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        for _ in range(2):
            for _ in range(10):
                await PolicyServiceStub(channel).Evaluate(descriptor, timeout=PATIENCE)
            await roll(policyd)
    await until(lambda: store.log.status().decisions == 20)
    await until(lambda: len(store.workers.list()) == 2)
    assert len(children(policyd, "server.background")) == 1
    assert await asyncio.to_thread(policyd.stop) == 0
    assert store.workers.list() == []
    store.close()


async def test_settings_are_read_again(start: Start, tmp_path: Path) -> None:
    """The settings of --config are in force from SIGHUP on, but for those that need a new start,
    which the log names. If the new worker does not come up, or the file has a mistake, the old
    worker goes on.
    """
    token, config = tmp_path / "token", tmp_path / "policyd.yaml"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    config.write_text("default-mode: off\n")
    flags = ("--config", str(config), "--caller-token-file", str(token), "--workers", "2")
    key = keys(f"sqlite:///{tmp_path}/policyd.db", "create", "test")["key"]
    policyd = start(Policyd, tmp_path, *flags)
    before = children(policyd)
    for spoilt, content, words in (
        (token, "short", "holds no token of 16 or more characters"),
        (config, "default-mode: of\n", "'of' is not one of"),
        (config, "defalt-mode: off\n", "did you mean default-mode?"),
    ):
        was = spoilt.read_text()
        spoilt.write_text(content)
        refused = told(policyd, "no more workers are replaced, and those that run go on")
        policyd.send(signal.SIGHUP)
        await until(lambda n=refused: told(policyd, "no more workers are replaced") > n)
        assert words in policyd.errors[-1]
        assert children(policyd) == before
        assert await decision(policyd, key, "0123456789abcdef") == DECISION_ALLOW
        spoilt.write_text(was)
    config.write_text("default-mode: enforce\nhttp: 127.0.0.1:1\n")
    token.write_text("fedcba9876543210")
    await roll(policyd)
    assert told(policyd, "--http has changed, which holds from the next start on") == 1
    assert await decision(policyd, key, "fedcba9876543210") == DECISION_DENY


async def decision(policyd: Policyd, key: str, token: str) -> int:
    """The decision on a request without a user."""
    async with PolicyClient(policyd.grpc, timeout=PATIENCE, token=token) as client:
        return (await client.evaluate(EvaluateRequest(key=key, has_user=False))).decision


# Draining


async def ready(url: str) -> tuple[int, str]:
    """The answer to a probe on a connection of its own: its status, and whether the connection
    ends.
    """
    async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as answer:
        return answer.status, answer.headers.get("Connection", "")


@pytest.mark.parametrize("workers", [1, 2])
async def test_policyd_drains(start: Start, tmp_path: Path, workers: int) -> None:
    """Health reports NOT_SERVING at once; new calls are answered until the port closes."""
    flags = ("--workers", str(workers), "--drain", "4", "--http", "127.0.0.1:0")
    policyd = start(Policyd, tmp_path, *flags)
    key = policyd.create_key()
    descriptor = EvaluateRequest(key=key, has_user=True)
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        watch = health_stub(channel).Watch(HealthCheckRequest())
        await watch.read()
        policyd.send(signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        await until(lambda: told(policyd, "says NOT_SERVING") == workers)
        policyd.send(signal.SIGHUP)  # It is too late for an answer.
        assert await ready(f"http://{policyd.http}") == (503, "close")
        new = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(policyd.grpc, options=new) as another:
            for one in (channel, another):
                answer = await PolicyServiceStub(one).Evaluate(descriptor, timeout=PATIENCE)
                assert answer.decision == DECISION_ALLOW
    assert await asyncio.to_thread(policyd.wait) == 0
    assert not told(policyd, "replaced")
    assert not told(policyd, "Traceback")


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_gateway_drains(make_stack: MakeStack, workers: int) -> None:
    """The gateway is not ready at once, and answers until its port closes.

    Each answer is the last on its connection.
    """
    stack = make_stack()
    restart_gateway(stack, "--workers", str(workers), "--drain", "4")
    async with aiohttp.ClientSession() as http:
        async with await ask(http, stack, user="alice") as answer:
            assert "Connection" not in answer.headers
        stack.gateway.send(signal.SIGTERM)
        await until(lambda: told(stack.gateway, "is no longer ready") == workers)
        assert await ready(stack.gateway.url) == (503, "close")
        for _ in range(3):
            async with await ask(http, stack, user="alice") as answer:
                assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert await asyncio.to_thread(stack.gateway.wait) == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("second", [False, True])
async def test_an_end_that_does_not_drain(
    make_stack: MakeStack, workers: int, second: bool
) -> None:
    """SIGINT does not wait for balancers; a second signal does not even wait for answers."""
    flags = ("--workers", str(workers), "--drain", "600", "--grace", "600")
    stack = make_stack(*flags)
    restart_gateway(stack, *flags)
    async with aiohttp.ClientSession() as http:
        if second:
            stack.upstream.hold()
        async with await ask(http, stack, user="alice", stream=True) as answer:
            first = signal.SIGTERM if second else signal.SIGINT
            for program in (stack.gateway, stack.policyd):
                program.send(first)
                if second:
                    await until(lambda one=program: told(one, "ends in 600 s") == workers)
                    program.send(signal.SIGTERM)
            if second:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()
                stack.upstream.let_go()
            else:
                assert (await answer.read()).endswith(b"[DONE]\n\n")
    for program in (stack.gateway, stack.policyd):
        assert await asyncio.to_thread(program.wait) == 0
        assert not told(program, "Traceback")
        assert not told(program, "killed")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 2\r\n\r\n"


@asynccontextmanager
async def held_upstream(let_go: asyncio.Event) -> AsyncIterator[str]:
    """An upstream that begins its answer to /v1/stream, and ends each when the test lets it go."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        begins = head.startswith(b"GET /v1/stream ")
        writer.write(HEAD + b"o" if begins else b"")
        await let_go.wait()
        writer.write(b"k" if begins else HEAD + b"ok")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.close()


@pytest.mark.parametrize("shorter", ["grace", "stream-grace"])
async def test_streams_have_a_bound_of_their_own(
    policyd: Policyd, start: Start, shorter: str
) -> None:
    """Past its bound an answer that has begun is cut.

    Past the other, a request without an answer gets 503.
    """
    longer = {"grace": "stream-grace", "stream-grace": "grace"}[shorter]
    let_go = asyncio.Event()
    headers = {"x-usagepanda-api-key": policyd.create_key()}
    async with held_upstream(let_go) as upstream, aiohttp.ClientSession(headers=headers) as http:
        flags = (f"--{longer}", "600", f"--{shorter}", "0.5", "--policy-timeout", WAITS)
        gateway = start(Gateway, policyd.grpc, upstream, *flags)
        streaming = await http.get(f"{gateway.url}/v1/stream")
        assert await streaming.content.readexactly(1) == b"o"
        waiting = asyncio.create_task(http.get(f"{gateway.url}/v1/wait"))
        await asyncio.sleep(0.5)
        gateway.send(signal.SIGTERM)
        if shorter == "grace":
            answer = await waiting
            assert answer.status == 503
            assert b"The gateway is stopping" in await answer.read()
            let_go.set()
            assert await streaming.read() == b"k"
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await streaming.read()
            let_go.set()
            assert await (await waiting).read() == b"ok"
    assert await asyncio.to_thread(gateway.wait) == 0


async def test_streams_of_strangers_do_not_hold_up_the_end(start: Start, tmp_path: Path) -> None:
    """Calls without a message, and streams that never end, have a short time, whatever --grace is.

    A decision under way has all of --grace.
    """
    policyd = start(Policyd, tmp_path, "--grace", "600")
    key = keys(policyd.database_url, "create", "test")
    policyd.reach(key["revision"])
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        watch = health_stub(channel).Watch(HealthCheckRequest())
        await watch.read()
        reflecting: Any = channel.stream_stream(_REFLECTION)()
        silent: Any = channel.stream_unary("/policyd.v1.PolicyService/Evaluate")()
        await reflecting.wait_for_connection()
        await silent.wait_for_connection()
        policyd.send(signal.SIGTERM)
        assert await asyncio.to_thread(policyd.wait) == 0
        for call in (reflecting, silent):
            call.cancel()


_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def test_connections_that_wait_where_a_server_closes() -> None:
    """A server that stops accepts and answers the connections in the kernel's queue."""
    listening = open_socket(Address("127.0.0.1", 0))
    place = listening.getsockname()
    listener = Listener(_app, tls=None, grace=PATIENCE, limits=wide_limits(connections=1000))
    await listener.start(listening)
    clients, answers = [], list[bytes]()
    for _ in range(100):  # More than the server accepts at once.
        client = socket.create_connection(place)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        clients.append(client)
    await listener.stop()
    for client in clients:
        with client:
            answers.append(client.recv(1000))
    assert [one for one in answers if not one.startswith(b"HTTP/1.1 200")] == []


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


# Processes that stand still


async def test_all_stand_still(make_stack: MakeStack) -> None:
    """All processes stand still for longer than a child or a client may be silent.

    As in a freezer, or with their machine. None is replaced, no request is lost, and the log names
    no process that hangs.
    """
    flags = ("--workers", "2")
    stack = make_stack(*flags, "--http", "127.0.0.1:0", "--head-timeout", "2")
    restart_gateway(stack, *flags, "--head-timeout", "2", "--idle-timeout", "3")
    programs = (stack.policyd, stack.gateway)
    before = [children(one, "") for one in programs]
    everything = [pid for one in programs for pid in (one.pid, *children(one, ""))]
    load = Load(stack)
    async with load.running(), half_sent(stack) as rest:
        await load.more(60, *DECIDED)
        for pid in everything:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1)
        await rest()  # The request lies unread.
        await asyncio.sleep(PAUSE)
        for pid in everything:
            os.kill(pid, signal.SIGCONT)
        await load.more(60, *DECIDED)
    await asyncio.sleep(3)
    assert [children(one, "") for one in programs] == before
    assert set(load.statuses()) == DECIDED
    for one in programs:
        assert await asyncio.to_thread(one.stop) == 0
        assert not told(one, "hangs")
        assert not told(one, "ended")


@asynccontextmanager
async def half_sent(stack: Stack) -> AsyncIterator[Callable[[], Any]]:
    """A client that has sent half a head.

    Gives a function that sends the rest and gets the answer.
    """
    host, _, port = stack.gateway.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    await writer.drain()

    async def send_rest() -> None:
        writer.write(f"x-usagepanda-api-key: {stack.key}\r\n\r\n".encode())
        await writer.drain()

    yield send_rest
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()
