"""CheckKey, and bodies that are not read because their request has no key in force."""

import gzip
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationStub

from policyd.client import NoDecision, PolicyClient, SyncPolicyClient
from policyd.command.address import Address
from policyd.server.server import Server
from policyd.settings import ServerSettings
from policyd.store import Store
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.databases import open_store
from tests.support.http_checks import check
from tests.support.processes import Policyd
from tests.support.running import worker

PATIENCE = 30
KEY = "x-usagepanda-api-key"
UNKNOWN = "up-" + "0" * 48
CHAT: dict[str, Any] = {"method": "POST", "path": "/v1/chat/completions"}
MESSAGES: dict[str, Any] = {"method": "POST", "path": "/v1/messages"}
MODELS = {"method": "GET", "path": "/v1/models"}
NOISE = random.Random(9).randbytes(900_000).hex()
BODY = gzip.compress(json.dumps({"user": "u-1", "x": [NOISE]}).encode())


def settings(folder: Path, **changes: Any) -> ServerSettings:
    """The settings of a server on free ports, with a database in `folder`."""
    free = Address("127.0.0.1", 0)
    usual: dict[str, Any] = {
        "database_url": f"sqlite:///{folder}/policyd.db",
        "grpc": free,
        "admin": free,
        "http": free,
        "admin_token_file": folder / "admin-token",
        "spool": folder / "spool",
    }
    return ServerSettings(**usual | changes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, str]]:
    """A server, and a key of its database."""
    made = settings(tmp_path_factory.mktemp("server"), max_message=16 * 2**20)
    store = open_store(made.database_url)
    _, key = store.keys.create("app")
    store.close()
    async with worker(made) as running:
        yield running, key


async def test_what_it_says(policyd: Policyd) -> None:
    """CheckKey tells whether the key is in force, and whether the body matters then.

    It logs nothing.
    """
    key = policyd.create_key("enforce")
    header = [pb.Header(name="X-UsagePanda-API-Key", value=key)]
    cases: list[tuple[dict[str, Any], bool, bool]] = [
        ({"key": key, **CHAT}, True, True),
        ({"key": key, **MESSAGES}, True, False),
        ({"key": policyd.create_key("off", accept="metadata.user_id"), **MESSAGES}, True, True),
        ({"headers": header, **CHAT}, True, True),
        ({"key": key}, True, True),
        ({"key": key, **MODELS}, True, False),
        ({"key": UNKNOWN, **CHAT}, False, False),
        ({"key": "nonsense", **CHAT}, False, False),
        ({"headers": [*header, pb.Header(name=KEY, value=UNKNOWN)], **CHAT}, False, False),
        ({**CHAT}, False, False),
    ]
    async with PolicyClient(policyd.grpc, timeout=PATIENCE) as client:
        answer = await client.evaluate(pb.EvaluateRequest(key=key, has_user=True))
        asked = [await client.check_key(pb.CheckKeyRequest(**one)) for one, _, _ in cases]
    assert [(one.in_force, one.needs_body) for one in asked] == [case[1:] for case in cases]
    assert {one.revision for one in asked} == {answer.revision}


@pytest.mark.slow
async def test_it_is_not_logged(tmp_path: Path) -> None:
    """CheckKey is no decision: the spool does not grow."""
    made = settings(tmp_path)
    async with (
        Server(made) as server,
        PolicyClient(str(server.grpc), timeout=PATIENCE) as client,
    ):
        for _ in range(20):
            await client.check_key(pb.CheckKeyRequest(key=UNKNOWN, **CHAT))
    assert not [*made.spool.glob("*.jsonl")]
    store = Store(made.database_url)
    assert store.log.status().decisions == 0
    store.close()


def test_from_threads(policyd: Policyd) -> None:
    """SyncPolicyClient has the same call, and raises once it is closed."""
    asked = pb.CheckKeyRequest(key=policyd.create_key("off"), **CHAT)
    with SyncPolicyClient(policyd.grpc, timeout=PATIENCE) as client:
        assert client.check_key(asked).needs_body
    with pytest.raises(NoDecision, match="closed"):
        client.check_key(asked)


async def test_a_policyd_that_is_gone(unused_port: Any) -> None:
    """Without an answer the call is an outage."""
    async with PolicyClient(f"127.0.0.1:{unused_port()}", timeout=0.5) as client:
        with pytest.raises(NoDecision) as caught:
            await client.check_key(pb.CheckKeyRequest(key=UNKNOWN))
    assert caught.value.is_outage


def _envoy(key: str, body: bytes) -> CheckRequest:
    asked = CheckRequest()
    http = asked.attributes.request.http
    http.method, http.path, http.protocol = "POST", CHAT["path"], "HTTP/1.1"
    http.headers.update({KEY: key, "content-length": str(len(body)), "content-encoding": "gzip"})
    http.raw_body = body
    return asked


def _evaluate(key: str, body: bytes) -> pb.EvaluateRequest:
    raw = pb.RawBody(content=body, content_encoding="gzip")
    return pb.EvaluateRequest(key=key, raw_body=raw, **CHAT)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("way", ["Evaluate", "BatchEvaluate", "Envoy", "HTTP"])
async def test_a_strangers_body_is_not_read(server: tuple[Server, str], way: str) -> None:
    """A large body without a known key is not read, by each interface."""
    running, key = server
    async with grpc.aio.insecure_channel(str(running.grpc)) as channel:
        stub, envoy = PolicyServiceStub(channel), AuthorizationStub(channel)

        async def ask(key: str, body: bytes) -> None:
            if way == "Evaluate":
                await stub.Evaluate(_evaluate(key, body), timeout=PATIENCE)
            elif way == "BatchEvaluate":
                items = [pb.BatchEvaluateItem(id="1", request=_evaluate(key, body))]
                await stub.BatchEvaluate(pb.BatchEvaluateRequest(items=items), timeout=PATIENCE)
            elif way == "Envoy":
                await envoy.Check(_envoy(key, body), timeout=PATIENCE)
            else:
                coded = ("Content-Encoding", "gzip")
                await check(f"http://{running.http}", key, body, coded)

        # A process that reads large bodies starts when there is one to read.
        running._bodies.close()
        await ask(UNKNOWN, BODY)
        assert not running._bodies.readers
        await ask(key, BODY)
        assert running._bodies.readers


@pytest.mark.slow
async def test_raw_bodies_have_a_total(tmp_path: Path) -> None:
    """Evaluate and BatchEvaluate reject bodies beyond the total.

    Small ones, and those with refused keys, fit.
    """
    made = settings(tmp_path, body_memory=300_000, max_body=100_000)
    store = open_store(made.database_url)
    _, key = store.keys.create("app")
    store.close()
    async with Server(made) as server:
        large, small = (
            pb.EvaluateRequest(key=key, raw_body=pb.RawBody(content=content), **CHAT)
            for content in (b'{"user":"u-1","x":"' + b"a" * 300_000 + b'"}', b'{"user":"u-1"}')
        )
        stranger = pb.EvaluateRequest(key=UNKNOWN, raw_body=large.raw_body, **CHAT)
        batch = pb.BatchEvaluateRequest(items=[pb.BatchEvaluateItem(id="1", request=large)])
        async with grpc.aio.insecure_channel(str(server.grpc)) as channel:
            stub: Any = PolicyServiceStub(channel)
            for ask, request in ((stub.Evaluate, large), (stub.BatchEvaluate, batch)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ask(request, timeout=PATIENCE)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "--body-memory" in str(refused.value.details())
            assert (await stub.Evaluate(small, timeout=PATIENCE)).decision == pb.DECISION_ALLOW
            denied = await stub.Evaluate(stranger, timeout=PATIENCE)
            assert denied.denial.http_status == 403
