"""A gateway that decides by itself passes the conformance vectors, with the answers of policyd."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from policyd.client.local import LocalPolicyClient
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support import conformance
from tests.support.conformance import Keys, Vector
from tests.support.processes import Policyd
from tests.support.stack import Background, Gateway, Upstream

pytestmark = pytest.mark.timeout(600)  # For a file of vectors.
DEFAULTS = ("off", "enforce")


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the token of gateways that decide by themselves."""
    path = tmp_path_factory.mktemp("token") / "local-token"
    path.touch(0o600)
    path.write_text(secrets.token_hex(16))
    return path


@pytest.fixture(scope="module")
def policyds(
    tmp_path_factory: pytest.TempPathFactory, token_file: Path
) -> Iterator[dict[str, Policyd]]:
    """Two policyds, by the server's default."""
    servers = {
        default: Policyd(
            tmp_path_factory.mktemp(default),
            *("--default-mode", default, "--local-token-file", str(token_file)),
        )
        for default in DEFAULTS
    }
    yield servers
    assert [server.stop() for server in servers.values()] == [0, 0]


@pytest.fixture(scope="module")
def keys(policyds: dict[str, Policyd]) -> dict[str, Keys]:
    """API keys of both, all of which are made before a gateway starts."""
    made = {default: Keys(server) for default, server in policyds.items()}
    for vector in conformance.VECTORS:
        made[vector.server_default].secret(vector.key)
    return made


@pytest.fixture(scope="module")
def upstream(background: Background) -> Iterator[Upstream]:
    """A demo upstream."""
    with Upstream(background) as running:
        yield running


@pytest.fixture(scope="module")
def gateways(
    keys: dict[str, Keys],
    policyds: dict[str, Policyd],
    token_file: Path,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Gateway]]:
    """A gateway beside each policyd, which decides by itself."""
    servers = {
        default: Gateway(
            *(server.grpc, upstream.url, "--decide", "local"),
            *("--spool", str(tmp_path_factory.mktemp("spool"))),
            *("--policyd-token-file", str(token_file)),
        )
        for default, server in policyds.items()
    }
    yield servers
    assert [server.stop() for server in servers.values()] == [0, 0]


@conformance.everywhere_by_file
def test_gateway(
    vectors: tuple[Vector, ...],
    subtests: pytest.Subtests,
    keys: dict[str, Keys],
    gateways: dict[str, Gateway],
    upstream: Upstream,
) -> None:
    """A gateway that decides by itself answers a denied request byte for byte, and forwards an
    allowed one."""
    urls = {default: gateway.url for default, gateway in gateways.items()}
    conformance.check_each_over_http(subtests, vectors, urls, keys, upstream)


@pytest.fixture(scope="module")
def clients(
    keys: dict[str, Keys],
    policyds: dict[str, Policyd],
    token_file: Path,
    background: Background,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, LocalPolicyClient]]:
    """A client beside each policyd, which decides in this process."""

    token = token_file.read_text()

    async def begun(default: str) -> LocalPolicyClient:
        client = LocalPolicyClient(
            policyds[default].grpc,
            spool=tmp_path_factory.mktemp("spool"),
            token=token,
        )
        return await client.__aenter__()

    made = {default: background.run(begun(default)) for default in policyds}
    yield made
    for client in made.values():
        background.run(client.close())


@conformance.everywhere_by_file
def test_client(
    vectors: tuple[Vector, ...],
    subtests: pytest.Subtests,
    keys: dict[str, Keys],
    policyds: dict[str, Policyd],
    clients: dict[str, LocalPolicyClient],
    background: Background,
) -> None:
    """LocalPolicyClient gives policyd's own answer: decision, flags, explanation, denial, all but
    the decision's ID."""

    def check(vector: Vector) -> None:
        default = vector.server_default
        asked = conformance.request_descriptor(vector, keys[default].secret(vector.key))
        answer = background.run(clients[default].evaluate(asked))
        conformance.check_answer(vector, answer)
        with grpc.insecure_channel(policyds[default].grpc) as channel:
            remote = PolicyServiceStub(channel).Evaluate(asked, timeout=30)
        assert answer.decision_id != remote.decision_id
        answer.decision_id = remote.decision_id
        assert answer == remote

    conformance.check_each(subtests, vectors, check)
