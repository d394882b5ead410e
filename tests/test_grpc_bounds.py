"""What bounds a gRPC client: connections, handshakes, ages; and methods that no service has."""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from policyd.client import PolicyClient
from policyd.configuration import Address
from policyd.server import Server
from policyd.services import listener
from policyd.settings import ServerSettings
from policyd.v1.policy_pb2 import EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

PATIENCE = 30
FREE = Address("127.0.0.1", 0)
ASKED = EvaluateRequest(has_user=True)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2 begins, with settings that say nothing."""


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
    """Those over the number end at once, the others when their handshake's time is over."""
    async with Server(_settings(tmp_path, max_connections=3, head_timeout=1.0)) as server:
        held = [await asyncio.open_connection(*server.grpc) for _ in range(6)]
        ended = [asyncio.create_task(_end(reader)) for reader, _ in held]
        done, waiting = await asyncio.wait(ended, timeout=0.7)
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
    """They are made anew again and again, so that balancers spread, and no question fails by it."""
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
    """All services at once, as Check tells them one by one."""
    async with Server(_settings(tmp_path)) as server:
        for address, service in (
            (server.grpc, "policyd.v1.PolicyService"),
            (server.admin, "policyd.v1.AdminService"),
        ):
            async with grpc.aio.insecure_channel(str(address)) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                asked: Any = health_pb2
                listed = await stub.List(asked.HealthListRequest(), timeout=PATIENCE)
            serving = health_pb2.HealthCheckResponse.SERVING
            assert {"", service} <= set(listed.statuses)
            assert {one.status for one in listed.statuses.values()} == {serving}


@pytest.mark.parametrize(
    "method",
    ["/grpc.health.v1.Health/Nothing", "/policyd.v1.PolicyService/Nothing", "/no.Service/Nothing"],
)
async def test_methods_that_no_service_has(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are UNIMPLEMENTED, and the log has nothing to say."""
    async with Server(_settings(tmp_path)) as server:
        async with grpc.aio.insecure_channel(str(server.grpc)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"", timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_what_a_connection_may_ask(tmp_path: Path) -> None:
    """HTTP/2's settings, as the server tells them: calls at once, and bytes of metadata."""
    async with Server(_settings(tmp_path)) as server, asyncio.timeout(PATIENCE):
        for address in (server.grpc, server.admin):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(PREFACE)
            head = await reader.readexactly(9)
            assert head[3] == 4  # A SETTINGS frame.
            given = dict(struct.iter_unpack(">HI", await reader.readexactly(head[2])))
            assert given[3] == listener._STREAMS
            assert given[6] == listener._MAX_HEAD
            writer.close()


async def test_pings_without_end(tmp_path: Path) -> None:
    """A connection that does nothing but ping is ended."""
    ping = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)
    async with Server(_settings(tmp_path)) as server:
        reader, writer = await asyncio.open_connection(*server.grpc)
        writer.write(PREFACE + ping * 20)
        assert b"too_many_pings" in await _end(reader)
        writer.close()
