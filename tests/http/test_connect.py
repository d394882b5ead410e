"""PolicyService by the Connect protocol: the same answers and errors as over gRPC."""

import base64
import json
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from policyd.errors import InvalidArgument
from policyd.http import connect
from policyd.services.errors import TABLE
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support import conformance
from tests.support.conformance import Keys, Vector
from tests.support.processes import BIN, Policyd
from tests.support.running import LOCAL, beside

SERVICE = "/policyd.v1.PolicyService/"
PROTO = "application/proto"
ROOT = Path(__file__).parents[2]


class Answer(NamedTuple):
    """A response as it arrived."""

    status: int
    headers: dict[str, str]
    body: bytes


class Caller:
    """A caller over HTTP/1.1, on one connection."""

    def __init__(self, place: str) -> None:
        self._connection = HTTPConnection(place, timeout=60)

    def post(self, method: str, body: bytes, kind: str = PROTO, **more: str) -> Answer:
        headers = {"Content-Type": kind, **{n.replace("_", "-"): v for n, v in more.items()}}
        self._connection.request("POST", SERVICE + method, body, headers)
        found = self._connection.getresponse()
        return Answer(found.status, dict(found.getheaders()), found.read())

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def caller(policyd: Policyd) -> Iterator[Caller]:
    calling = Caller(str(policyd.http))
    yield calling
    calling.close()


@pytest.fixture(scope="module")
def stub(policyd: Policyd) -> Iterator[PolicyServiceStub]:
    with grpc.insecure_channel(policyd.grpc) as channel:
        yield PolicyServiceStub(channel)


# --- beside gRPC -------------------------------------------------------------------------------

ANSWERS = {
    "Evaluate": pb.EvaluateResponse,
    "BatchEvaluate": pb.BatchEvaluateResponse,
    "CheckKey": pb.CheckKeyResponse,
    "ReportOutcome": pb.ReportOutcomeResponse,
}
REQUESTS: dict[str, tuple[str, Message]] = {
    "allowed": ("Evaluate", pb.EvaluateRequest(has_user=True)),
    "denied": ("Evaluate", pb.EvaluateRequest(has_user=False)),
    "unknown user": ("Evaluate", pb.EvaluateRequest()),
    "unknown state": ("Evaluate", pb.EvaluateRequest(user_state=99)),  # type: ignore[arg-type]  # It is no member.
    "raw body": ("Evaluate", pb.EvaluateRequest(raw_body=pb.RawBody(content=b'{"user":""}'))),
    "not soon": ("Evaluate", pb.EvaluateRequest(has_user=True, min_revision=10**9)),
    "odd idempotency key": ("Evaluate", pb.EvaluateRequest(has_user=True, idempotency_key="x")),
    "no batch": ("BatchEvaluate", pb.BatchEvaluateRequest()),
    "a batch": (
        "BatchEvaluate",
        pb.BatchEvaluateRequest(
            items=[
                pb.BatchEvaluateItem(id="a", request=pb.EvaluateRequest(has_user=False)),
                pb.BatchEvaluateItem(id="b", request=pb.EvaluateRequest()),
            ]
        ),
    ),
    "twice": ("BatchEvaluate", pb.BatchEvaluateRequest(items=[pb.BatchEvaluateItem()] * 2)),
    "key": ("CheckKey", pb.CheckKeyRequest(method="POST", path="/v1/embeddings")),
    "outcome": ("ReportOutcome", pb.ReportOutcomeRequest(outcomes=[pb.Outcome(decision_id="x")])),
    "many": ("ReportOutcome", pb.ReportOutcomeRequest(outcomes=[pb.Outcome()] * 1001)),
}


def keyed(message: Message, key: str) -> Message:
    """The same about this key, where it is about one."""
    made = type(message)()
    made.CopyFrom(message)
    if isinstance(made, pb.EvaluateRequest | pb.CheckKeyRequest):
        made.key = key
    if isinstance(made, pb.BatchEvaluateRequest):
        for item in made.items:
            item.request.key = key
    return made


def same(answer: Message) -> Message:
    """An answer without what differs between two of the same."""
    if isinstance(answer, pb.EvaluateResponse):
        answer.ClearField("decision_id")
    if isinstance(answer, pb.BatchEvaluateResponse):
        for one in answer.results:
            one.response.ClearField("decision_id")
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PROTO, "application/json; charset=utf-8"])
@pytest.mark.parametrize("name", REQUESTS)
def test_it_answers_as_over_grpc(
    stub: PolicyServiceStub, caller: Caller, enforcing: str, name: str, kind: str
) -> None:
    """Answers have the same fields; errors the same code, message and reason."""
    method, asked = REQUESTS[name]
    message = keyed(asked, enforcing)
    is_proto = kind == PROTO
    body = message.SerializeToString() if is_proto else json_format.MessageToJson(message).encode()
    told = caller.post(method, body, kind, connect_timeout_ms="1000")
    try:
        wanted = getattr(stub, method)(message, timeout=1)
    except grpc.RpcError as error:
        assert told.headers["Content-Type"] == "application/json"
        check_error(told, error)
        return
    assert (told.status, told.headers["Content-Type"]) == (200, kind.partition(";")[0])
    found = ANSWERS[method]()
    if is_proto:
        found.ParseFromString(told.body)
    else:
        json_format.Parse(told.body, found)
    assert same(found) == same(wanted)


def check_error(told: Answer, error: Any) -> None:
    found = json.loads(told.body)
    assert (found["code"], found["message"]) == (error.code().name.lower(), error.details())
    (status,) = [one.value for one in error.trailing_metadata() if one.key.endswith("-bin")]
    info, wanted = error_details_pb2.ErrorInfo(), error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(status).details[0].Unpack(wanted)
    (detail,) = found["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"
    info.ParseFromString(base64.b64decode(detail["value"] + "=="))
    assert info == wanted
    assert told.status == {"invalid_argument": 400, "failed_precondition": 400}[found["code"]]


@pytest.fixture(scope="module")
def keys(policyd: Policyd) -> Keys:
    return Keys(policyd)


@conformance.over_http_by_file
def test_vectors(
    vectors: tuple[Vector, ...], subtests: pytest.Subtests, keys: Keys, policyd: Policyd
) -> None:
    """Each vector's descriptor is decided as the vector states."""
    calling = Caller(str(policyd.http))

    def check(vector: Vector) -> None:
        asked = conformance.request_descriptor(vector, keys.secret(vector.key))
        told = calling.post("Evaluate", asked.SerializeToString())
        assert told.status == 200, told.body
        conformance.check_answer(vector, pb.EvaluateResponse.FromString(told.body))

    conformance.check_each(subtests, vectors, check)
    calling.close()


def test_a_client_of_connect(policyd: Policyd, enforcing: str) -> None:
    """`buf curl` speaks Connect with it."""
    done = subprocess.run(
        [
            *(BIN / "buf", "curl", "--protocol", "connect", "--schema", ROOT / "protos"),
            *("-d", json.dumps({"key": enforcing, "hasUser": False})),
            f"http://{policyd.http}{SERVICE}Evaluate",
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decision"] == "DECISION_DENY"


# --- what is no call ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/x-protobuf"}, 415),
        ({"Content-Type": "application/connect+proto"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": PROTO, "Content-Encoding": "gzip"}, 501),
        ({"Content-Type": PROTO, "Content-Encoding": "identity"}, 200),
    ],
)
def test_what_is_no_call(policyd: Policyd, off: str, headers: dict[str, str], status: int) -> None:
    """A call with another content type, or a compressed message, gets the status that Connect has
    for it."""
    connection = HTTPConnection(str(policyd.http), timeout=60)
    body = pb.EvaluateRequest(key=off, has_user=True).SerializeToString()
    connection.request("POST", SERVICE + "Evaluate", body, headers)
    assert connection.getresponse().status == status
    connection.close()


def test_methods_and_paths(policyd: Policyd) -> None:
    """Only a POST is a call, and only the service's own methods are there."""
    connection = HTTPConnection(str(policyd.http), timeout=60)
    for method, path, status in [
        ("GET", "Evaluate", 405),
        ("POST", "Evaluate/", 404),
        ("POST", "Explain", 404),
    ]:
        connection.request(method, SERVICE + path, headers={"Content-Type": PROTO})
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (PROTO, b"\xff\xff"),
        ("application/json", b"{"),
        ("application/json", b'{"hasUsr": true}'),
        ("application/json", b"\xff"),
        ("application/json", b'{"a":' * 200_000),
    ],
)
def test_a_malformed_message(caller: Caller, kind: str, body: bytes) -> None:
    """A malformed message is an error of the caller's, and no decision."""
    told = caller.post("Evaluate", body, kind)
    assert (told.status, json.loads(told.body)["code"]) == (400, "invalid_argument")


@pytest.mark.parametrize(
    "body",
    [
        b'{"items":[' + b"{}," * 2**20 + b"{}]}",
        b'{"headers":[' + b'{"name":"a"},' * 2**17 + b"{}]}",
        b'{"x":[' + b"1," * 2**20 + b"1]}",
        b"[" * 2**20,
    ],
)
def test_json_of_many_values(caller: Caller, body: bytes) -> None:
    """JSON of many values, which would hold up other requests for seconds, is not read, and the
    error says what to send."""
    told = caller.post("BatchEvaluate", body, "application/json")
    assert (told.status, json.loads(told.body)["code"]) == (400, "invalid_argument")
    assert "application/proto" in json.loads(told.body)["message"]


def test_as_many_values_as_may_be() -> None:
    """The bound is of marks, in bodies that could have so many."""
    most = connect._MARKS // 2 - 1  # `{`, `[` and `:`, then two for each item but the last.
    for items, is_read in ((most, True), (most + 1, False)):
        body = b'{"items":[' + b",".join([b"{}"] * items) + b"]}"
        if is_read:
            read = connect._read(pb.BatchEvaluateRequest, "application/json", body)
            assert isinstance(read, pb.BatchEvaluateRequest)
            assert len(read.items) == items
        else:
            with pytest.raises(InvalidArgument, match="brackets, colons and commas"):
                connect._read(pb.BatchEvaluateRequest, "application/json", body)


def test_a_large_raw_body_in_json(caller: Caller, off: str) -> None:
    """A large raw body in JSON is one value, so it is read."""
    content = json.dumps({"user": "alice", "messages": [{"content": "[,:{" * 2**18}]}).encode()
    sent = pb.EvaluateRequest(
        key=off, method="POST", path="/v1/chat/completions", raw_body=pb.RawBody(content=content)
    )
    told = caller.post("Evaluate", json_format.MessageToJson(sent).encode(), "application/json")
    assert told.status == 200


def test_a_call_that_waits(caller: Caller, off: str) -> None:
    """A caller that has less time than a revision takes gets the reason before its time is up."""
    asked = pb.EvaluateRequest(key=off, has_user=True, min_revision=10**9)
    told = caller.post("Evaluate", asked.SerializeToString(), connect_timeout_ms="200")
    assert (told.status, json.loads(told.body)["code"]) == (400, "failed_precondition")


def test_every_error_has_a_status() -> None:
    """Each code of policyd's errors has an HTTP status."""
    assert {code.name.lower() for code, _ in TABLE.values()} <= connect._STATUS.keys()


def test_bounds_and_tokens(tmp_path: Path) -> None:
    """Without the callers' token there is no answer, nor to a message over --max-message."""
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length-0123456789\n")
    file.chmod(0o600)
    bearer = f"Bearer {file.read_text().strip()}"
    body = pb.EvaluateRequest(has_user=True).SerializeToString()
    large = pb.EvaluateRequest(user="x" * 1_000_000).SerializeToString()
    given = {"caller_token_file": file, "max_message": 1_000_000, "http": LOCAL}
    with beside(tmp_path, **given) as server:
        calling = Caller(str(server.http))
        refused = calling.post("Evaluate", body)
        assert (refused.status, json.loads(refused.body)["code"]) == (401, "unauthenticated")
        assert calling.post("Evaluate", body, authorization=bearer).status == 200
        told = calling.post("Evaluate", large, authorization=bearer)
        assert (told.status, json.loads(told.body)["code"]) == (429, "resource_exhausted")
        calling.close()
