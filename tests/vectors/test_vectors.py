"""Our own reading, deciding, gRPC service and gateway pass the conformance vectors."""

import json
from collections.abc import Callable, Iterator

import grpc
import pytest

from policyd.descriptor import evaluate_request
from policyd.descriptor.body import read_body
from policyd.descriptor.headers import (
    TRACE_HEADER,
    agreed,
    trace_id,
    values,
)
from policyd.descriptor.identifiers import BodyAttributes
from policyd.engine.settings import KeySettings
from policyd.engine.states import Credential, Mode, UserState
from policyd.policies import TABLE, decide
from policyd.v1.policy_pb2 import EvaluateResponse
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support import conformance
from tests.support.conformance import Keys, Vector
from tests.support.peers import KINDS
from tests.support.processes import Policyd
from tests.support.stack import Background, Gateway, Upstream

pytestmark = pytest.mark.timeout(600)  # For a file of vectors.
SECRET = "up-" + "k" * 48
Stack = Callable[[Vector], tuple[str, str]]


def attributes(vector: Vector) -> BodyAttributes:
    """The attributes of the vector's body."""
    request = vector.request
    kinds = values(request.headers, "content-type")
    codings = values(request.headers, "content-encoding")
    endpoint = request.asked.endpoint
    return read_body(request.content, agreed(kinds), ", ".join(codings), endpoint)


@conformance.everywhere_by_file
def test_descriptor(vectors: tuple[Vector, ...], subtests: pytest.Subtests) -> None:
    """Scope, operation, path, trace ID and both identifiers are read as each vector states."""
    conformance.check_each(subtests, vectors, check_descriptor)


def check_descriptor(vector: Vector) -> None:
    expected, request = vector.descriptor, vector.request
    target = vector.target
    traces = values(request.headers, TRACE_HEADER)
    assert target.in_scope == expected.in_scope
    assert target.path == expected.path
    assert trace_id("".join(traces)) == expected.trace_id
    assert (target.endpoint.operation if target.endpoint else "") == expected.operation
    if not expected.in_scope:
        return
    user, safety_identifier, *_, others = attributes(vector)
    assert user.state.name.lower() == expected.user_state
    assert (user.state is UserState.VALID) == expected.has_user
    assert safety_identifier.state.name.lower() == expected.safety_identifier_state
    if not user.state.is_unreadable:  # Else no place is known.
        further = {place: one.state.name.lower() for place, one in others}
        assert further == expected.end_users
    assert expected.user in (None, user.value)
    assert expected.safety_identifier in (None, safety_identifier.value)


@conformance.everywhere_by_file
def test_decision(vectors: tuple[Vector, ...], subtests: pytest.Subtests) -> None:
    """The engine decides as each vector states."""
    conformance.check_each(subtests, vectors, check_decision)


def check_decision(vector: Vector) -> None:
    given = evaluate_request.read(conformance.request_descriptor(vector, SECRET)).decision_input
    is_known = given.credential is Credential.GIVEN and given.key == SECRET
    settings = KeySettings("key_test", vector.key.settings, vector.key.accept)
    defaults = TABLE.with_original(Mode[vector.server_default.upper()])
    decision = decide(given, settings if is_known else None, defaults)
    # test_descriptor checks the two fields that the service adds to a decision.
    answer = EvaluateResponse(trace_id=vector.descriptor.trace_id, upstream_path=vector.target.path)
    answer.MergeFrom(evaluate_request.answer(decision))
    conformance.check_answer(vector, answer)


@pytest.fixture(scope="module")
def enforcing_policyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    """A policyd whose default is enforce."""
    flags = ("--default-mode", "enforce", "--http", "127.0.0.1:0")
    server = Policyd(tmp_path_factory.mktemp("enforcing"), *flags)
    yield server
    assert server.stop() == 0, server.errors


@pytest.fixture(scope="module")
def keys(policyd: Policyd, enforcing_policyd: Policyd) -> dict[str, Keys]:
    """API keys of both, by the server's default."""
    return {"off": Keys(policyd), "enforce": Keys(enforcing_policyd)}


@pytest.fixture(scope="module")
def stubs(policyd: Policyd, enforcing_policyd: Policyd) -> Iterator[dict[str, PolicyServiceStub]]:
    """Stubs of both, by the server's default."""
    with (
        grpc.insecure_channel(policyd.grpc) as off,
        grpc.insecure_channel(enforcing_policyd.grpc) as enforce,
    ):
        yield {"off": PolicyServiceStub(off), "enforce": PolicyServiceStub(enforce)}


@conformance.everywhere_by_file
def test_evaluate(
    vectors: tuple[Vector, ...],
    subtests: pytest.Subtests,
    keys: dict[str, Keys],
    stubs: dict[str, PolicyServiceStub],
) -> None:
    """Evaluate answers the raw request over gRPC as each vector states."""

    def check(vector: Vector) -> None:
        default = vector.server_default
        asked = conformance.request_descriptor(vector, keys[default].secret(vector.key))
        conformance.check_answer(vector, stubs[default].Evaluate(asked, timeout=30))

    conformance.check_each(subtests, vectors, check)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A demo upstream."""
    with Background() as background, Upstream(background) as running:
        yield running


@pytest.fixture(scope="module", params=KINDS)
def gateways(
    request: pytest.FixtureRequest, policyd: Policyd, enforcing_policyd: Policyd, upstream: Upstream
) -> Iterator[dict[str, Gateway]]:
    """A gateway that asks each policyd, by the server's default: over gRPC, and over HTTP."""

    def start(server: Policyd) -> Gateway:
        at = server.grpc if request.param == "grpc" else f"http://{server.http}"
        return Gateway(at, upstream.url, "--policy-timeout", "30")

    servers = {"off": start(policyd), "enforce": start(enforcing_policyd)}
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
    """The gateway answers a denied request byte for byte, and forwards an allowed one."""
    urls = {default: gateway.url for default, gateway in gateways.items()}
    conformance.check_each_over_http(subtests, vectors, urls, keys, upstream)


def test_there_are_vectors() -> None:
    """Vectors are found, each has an ID of its own, and each ends in a denial or upstream."""
    vectors = conformance.VECTORS
    assert len({vector.id for vector in vectors}) == len(vectors) > 600
    assert all((vector.denial is None) != (vector.upstream_target is None) for vector in vectors)


def test_their_page() -> None:
    """The page names every file, and gives the number of vectors."""
    page = (conformance.FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{len(conformance.VECTORS)} vectors in" in page
    assert [path.name for path in conformance.FILES if f"`{path.name}`" not in page] == []


def test_the_schema() -> None:
    """The JSON Schema beside the vectors is the one that they are read by."""
    schema = json.loads((conformance.FOLDER / "schema" / "vectors.schema.json").read_bytes())
    assert schema == conformance.schema()
