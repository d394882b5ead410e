"""policyd's server in the loop of the tests, and stubs to ask it with."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from policyd.command.address import Address
from policyd.keys import tokens
from policyd.server.preparation import prepare
from policyd.server.server import Server
from policyd.settings import ServerSettings
from policyd.v1 import admin_pb2, policy_pb2
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.databases import put_database
from tests.support.stack import Background

LOCAL = Address("127.0.0.1", 0)
ANYWHERE = Address("0.0.0.0", 0)  # noqa: S104  # policyd rejects it, or does not listen on it.


def settings(folder: Path, **changes: Any) -> ServerSettings:
    given: dict[str, Any] = {
        "database_url": f"sqlite:///{folder}/policyd.db",
        "grpc": LOCAL,
        "admin": LOCAL,
        "admin_token_file": folder / "admin-token",
        "spool": folder / "spool",
        "poll_interval": 0.05,
        "grace": 2.0,
    }
    return ServerSettings(**given | changes)


def worker(given: ServerSettings) -> Server:
    """A server for a test that needs no background worker, whose process costs more CPU than most
    tests do. It is what each of several workers is: their parent has the background worker."""
    prepare(given)
    return Server(given, shared=True, is_first=True)


class Running:
    """A server, and stubs to ask it with."""

    def __init__(self, server: Server, token: str) -> None:
        self.server = server
        self.channel = grpc.aio.insecure_channel(str(server.grpc))
        self.admin_channel = grpc.aio.insecure_channel(str(server.admin))
        self.policy = PolicyServiceStub(self.channel)
        self.admin = AdminServiceStub(self.admin_channel)
        self.bearer = (("authorization", f"Bearer {token}"),)

    async def create_key(self, **fields: Any) -> tuple[admin_pb2.ApiKey, str]:
        """A key in force."""
        wanted = admin_pb2.ApiKey(**{"name": f"test {secrets.token_hex(4)}"} | fields)
        request = admin_pb2.CreateApiKeyRequest(api_key=wanted)
        made = await self.admin.CreateApiKey(request, metadata=self.bearer)
        await self.evaluate(has_user=True, min_revision=made.api_key.revision)
        return made.api_key, made.key

    async def evaluate(self, **fields: Any) -> policy_pb2.EvaluateResponse:
        return await self.policy.Evaluate(policy_pb2.EvaluateRequest(**fields), timeout=20)


@asynccontextmanager
async def serving(
    folder: Path, start: Callable[[ServerSettings], Server] = Server
) -> AsyncIterator[Running]:
    """A server with a new database in `folder`; `worker` starts one that ships no log."""
    given = settings(folder)
    put_database(given.database_url)
    async with start(given) as server:
        stubs = Running(server, tokens.load(folder / "admin-token", "test"))
        yield stubs
        await stubs.channel.close()
        await stubs.admin_channel.close()


@contextmanager
def beside(folder: Path, **changes: Any) -> Iterator[Server]:
    """A worker with a database in `folder`, a new one unless it is there, in a thread of its own,
    for tests that block."""
    given = settings(folder, **changes)
    if not (folder / "policyd.db").exists():
        put_database(given.database_url)
    background = Background()
    server = worker(given)
    background.run(server.__aenter__())
    try:
        yield server
    finally:
        background.run(server.stop())
        background.close()


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status code and the reason in ErrorInfo that an RPC fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin")
    if details is None:
        return caught.value.code(), ""
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.domain == "policyd"
    return caught.value.code(), info.reason
