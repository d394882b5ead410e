"""The bounds of a gRPC caller: connections, handshakes, ages; and methods that no service has."""

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from policyd.client import PolicyClient
from policyd.command.address import Address
from policyd.server.server import Server
from policyd.services import grpc_server
from policyd.settings import ServerSettings
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.health import health_stub

pytestmark = pytest.mark.slow  # Each test has a server with its own settings.

PATIENCE = 30
FREE = Address("127.0.0.1", 0)
ASKED = EvaluateRequest(has_user=True)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The beginning of an HTTP/2 connection, with empty settings."""


def _settings(folder: Path, **changes: Any) -> ServerSettings:
    usual: dict[str, Any] = {
        "database_url": f"sqlite:///{folder}/policyd.db",
        "grpc": FREE,
        "admin": FREE,
        "admin_token_file": folder / "admin-token",
        "spool": folder / "spool",
    }
    return ServerSettings(**usual | changes)


async def _end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await reader.read()


async def test_connections_that_do_not_speak(tmp_path: Path) -> None:
    """Connections over the number end at once, the others when their handshake's time is over."""
    async with Server(_settings(tmp_path, max_connections=3, head_timeout=4.0)) as server:
        held = [await asyncio.open_connection(*server.grpc) for _ in range(6)]
        waiting = {asyncio.create_task(_end(reader)) for reader, _ in held}
        async with asyncio.timeout(PATIENCE):
            while len(waiting) > 3:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result() for task in done} == {b""}
        assert len(waiting) == 3
        await asyncio.gather(*waiting)
        async with grpc.aio.insecure_channel(str(server.grpc)) as channel:
            await PolicyServiceStub(channel).Evaluate(ASKED, timeout=PATIENCE, wait_for_ready=True)
        for _, writer in held:
            writer.close()


@asynccontextmanager
async def _counting(target: Address) -> AsyncIterator[tuple[str, list[int]]]:
    """An address before `target`, and a list with an item for each connection."""
    seen: list[int] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(1)
        far = await asyncio.open_connection(*target)
        await asyncio.gather(pass_on(reader, far[1]), pass_on(far[0], writer))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", seen
    finally:
        listening.close()


async def test_connections_grow_old(tmp_path: Path) -> None:
    """Old connections are replaced, so that balancers spread them, and no call fails by it."""
    async with (
        Server(_settings(tmp_path, max_connection_age=0.3)) as server,
        _counting(server.grpc) as (address, seen),
        PolicyClient(address, timeout=PATIENCE) as client,
        asyncio.timeout(2 * PATIENCE),
    ):

        async def ask() -> None:
            while len(seen) < 6:
                await client.evaluate(ASKED)  # It would raise NoDecision.
                await asyncio.sleep(0.001)

        await asyncio.gather(*(ask() for _ in range(8)))


async def test_health_is_listed(tmp_path: Path) -> None:
    """List tells the health of all services at once, as Check does one by one."""
    async with Server(_settings(tmp_path)) as server:
        for address, service in (
            (server.grpc, "policyd.v1.PolicyService"),
            (server.admin, "policyd.v1.AdminService"),
        ):
            async with grpc.aio.insecure_channel(str(address)) as channel:
                stub: Any = health_stub(channel)
                asked: Any = health_pb2
                listed = await stub.List(asked.HealthListRequest(), timeout=PATIENCE)
            serving = health_pb2.HealthCheckResponse.SERVING
            assert {"", service} <= set(listed.statuses)
            assert {one.status for one in listed.statuses.values()} == {serving}


async def _watch(channel: grpc.aio.Channel) -> Any:
    call: Any = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call.read()
    return call


async def _say_nothing(channel: grpc.aio.Channel, method: str) -> Any:
    call: Any = channel.stream_stream(method)()
    with contextlib.suppress(grpc.aio.AioRpcError):  # The server may have rejected it by now.
        await call.wait_for_connection()
    return call


_HOLDERS: dict[str, Callable[[grpc.aio.Channel], Awaitable[Any]]] = {
    "watch": _watch,
    "evaluate": partial(_say_nothing, method="/policyd.v1.PolicyService/Evaluate"),
    "check": partial(_say_nothing, method="/grpc.health.v1.Health/Check"),
    "access log": partial(
        _say_nothing, method="/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
    ),
    "reflection": partial(
        _say_nothing, method="/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    ),
}


@pytest.mark.parametrize("hold", _HOLDERS.values(), ids=_HOLDERS)
@pytest.mark.parametrize("token", ["", "0123456789" * 4])
async def test_calls_that_are_only_held(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hold: Callable[[grpc.aio.Channel], Awaitable[Any]],
    token: str,
) -> None:
    """Streams, and calls without their message, keep out no caller, with a token or without."""
    monkeypatch.setattr(grpc_server, "_CALLS", 20)
    file = tmp_path / "token"
    file.write_text(token)
    file.chmod(0o600)
    settings = _settings(tmp_path, caller_token_file=file if token else None, grace=0.1)
    async with (
        Server(settings) as server,
        grpc.aio.insecure_channel(str(server.grpc)) as stranger,
        PolicyClient(str(server.grpc), token=token, timeout=PATIENCE) as client,
    ):
        held = [await hold(stranger) for _ in range(30)]
        assert (await client.evaluate(ASKED)).decision == DECISION_DENY
        for call in held:
            call.cancel()


async def test_a_caller_without_token_is_rejected_before_a_message(tmp_path: Path) -> None:
    """policyd neither waits for a message of such a caller nor holds one."""
    file = tmp_path / "token"
    file.write_text("0123456789" * 4)
    file.chmod(0o600)
    settings = _settings(tmp_path, caller_token_file=file, grace=0.1)
    async with (
        Server(settings) as server,
        grpc.aio.insecure_channel(str(server.grpc)) as channel,
        asyncio.timeout(PATIENCE),
    ):
        for method in ("Evaluate", "Nothing"):
            call = await _say_nothing(channel, f"/policyd.v1.PolicyService/{method}")
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "method",
    ["/grpc.health.v1.Health/Nothing", "/policyd.v1.PolicyService/Nothing", "/no.Service/Nothing"],
)
async def test_methods_that_no_service_has(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such methods are UNIMPLEMENTED, and leave no line in the log."""
    async with Server(_settings(tmp_path)) as server:
        async with grpc.aio.insecure_channel(str(server.grpc)) as channel:
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_what_a_connection_may_ask(tmp_path: Path) -> None:
    """The server announces HTTP/2's settings: calls at once, and bytes of metadata."""
    async with Server(_settings(tmp_path)) as server, asyncio.timeout(PATIENCE):
        for address in (server.grpc, server.admin):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(PREFACE)
            head = await reader.readexactly(9)
            assert head[3] == 4  # A SETTINGS frame.
            given = dict(struct.iter_unpack(">HI", await reader.readexactly(head[2])))
            assert given[3] == grpc_server._STREAMS
            assert given[6] == grpc_server._MAX_HEAD
            writer.close()


async def test_pings_without_end(tmp_path: Path) -> None:
    """A connection that does nothing but ping is ended."""
    ping = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)
    async with Server(_settings(tmp_path)) as server:
        reader, writer = await asyncio.open_connection(*server.grpc)
        writer.write(PREFACE + ping * 20)
        assert b"too_many_pings" in await _end(reader)
        writer.close()
