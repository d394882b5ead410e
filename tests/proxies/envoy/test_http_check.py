"""A real Envoy that asks policyd over HTTP, as integrations/envoy/http-check.yaml has it."""

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policyd.asgi import reply as replies
from tests.proxies.envoy.proxy import Envoy, check_over_http, ext_authz, routes
from tests.proxies.envoy.test_envoy import DENIAL, GOLDEN, JSON, ask, body_of, last_log
from tests.proxies.envoy.test_vectors import NOT_ASKED, REFUSED
from tests.proxies.http.test_vectors import EMPTY
from tests.support import conformance, requirements
from tests.support.commands import logged, logged_with_outcome
from tests.support.conformance import Keys, Vector
from tests.support.envoy_checks import CHAT, CHAT_WITH_USER, KEY, PATH
from tests.support.processes import Policyd
from tests.support.stack import Upstream

Make = Callable[[], dict[str, Any]]
Start = Callable[[dict[str, Any]], Envoy]


@pytest.fixture(scope="module")
def made(config: Make, policyd: Policyd) -> Make:
    """Makes the bootstrap in which the check over HTTP stands in place of that over gRPC."""

    def make() -> dict[str, Any]:
        found = config()
        check_over_http(found, str(policyd.http))
        return found

    return make


@pytest.fixture(scope="module")
def proxy(made: Make, start: Start) -> Envoy:
    return start(made())


def test_a_denial_to_the_byte(proxy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """Status, body, and the first headers, their order and letter case, are those of
    docs/contract.md, section 4.
    """
    before = len(proxy.log)
    answer = ask(proxy, enforcing, CHAT, JSON)
    assert answer.status == 422
    assert answer.headers[:4] == DENIAL
    assert [name for name, _ in answer.headers[4:]] == ["Date", "Content-Length", "X-Request-Id"]
    assert answer.body == GOLDEN.read_bytes()
    assert not upstream.received
    told = last_log(proxy, before)["policyd"]
    assert told["x-policyd-decision-id"] == dict(answer.headers)["X-Request-Id"]
    assert told["x-policyd-flags"] == "policy_enforce_user_ids"
    assert "decision" not in told


def test_an_allowed_request(
    policyd: Policyd, proxy: Envoy, upstream: Upstream, enforcing: str
) -> None:
    """An allowed request goes upstream by its canonical path and without policyd's own headers, and
    policyd's log has the client's address and the outcome."""
    before = len(proxy.log)
    answer = ask(
        *(proxy, enforcing, CHAT_WITH_USER, JSON),
        *(("Authorization", "Bearer sk-any"), ("X-Request-Id", "mine"), ("x_usagepanda-x", "1")),
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
    decision_id = last_log(proxy, before)["policyd"]["decision_id"]
    found = logged_with_outcome(policyd.database_url, decision_id)
    assert (found["ending"], found["upstream_status"]) == ("complete", 200)
    assert found["source_ip"] == "127.0.0.1"


def test_a_denial_has_no_outcome(
    policyd: Policyd, proxy: Envoy, upstream: Upstream, enforcing: str
) -> None:
    """A denied request has no outcome, even after that of a later one has come."""
    before = len(proxy.log)
    denied = dict(ask(proxy, enforcing, CHAT, JSON).headers)["X-Request-Id"]
    ask(proxy, enforcing, CHAT_WITH_USER, JSON)
    allowed = last_log(proxy, before + 1)["policyd"]["decision_id"]
    logged_with_outcome(policyd.database_url, allowed)
    assert logged(policyd.database_url, denied)["ending"] is None


def test_what_a_client_claims(proxy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """Headers with which policyd answers, or a proxy asks, mean nothing from a client."""
    claims = (
        ("X-Policyd-Upstream-Path", "/v1/embeddings"),
        ("X-Policyd-Decision-Id", "0" * 32),
        ("X-Forwarded-Uri", "/v1/models"),
        ("X-Forwarded-Method", "GET"),
        ("X-Envoy-Auth-Partial-Body", "false"),
    )
    assert ask(proxy, enforcing, CHAT, JSON, *claims).status == 422
    assert not upstream.received
    assert ask(proxy, enforcing, CHAT_WITH_USER, JSON, *claims).status == 200
    assert [one.target for one in upstream.received] == [PATH.encode()]


def test_paths_out_of_scope(proxy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """Path and query are forwarded byte for byte; without a key nothing is."""
    path = "/v1/x/../%6dodels//?q=%20/../a"
    ask(proxy, enforcing, None, method="GET", path=path)
    assert [one.target for one in upstream.received] == [path.encode()]
    assert ask(proxy, "", None, method="GET", path=path).status == 403
    assert ask(proxy, "", None, method="GET", path="/v1/check;mode=off/v1/models").status == 403
    assert len(upstream.received) == 1


def test_keys(proxy: Envoy, upstream: Upstream, enforcing: str, off: str) -> None:
    """Two keys that differ are none, and an upload of any size needs one."""
    assert ask(proxy, enforcing, CHAT_WITH_USER, JSON, (KEY.upper(), off)).status == 403
    assert ask(proxy, "", b"x" * 6_000_000, path="/v1/files").status == 403
    assert not upstream.received
    ask(proxy, enforcing, b"x" * 6_000_000, path="/v1/files")
    assert upstream.received[0].length == 6_000_000


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_a_path_that_would_be_settings(
    proxy: Envoy, upstream: Upstream, enforcing: str, version: str
) -> None:
    """Envoy takes no path that does not begin with a slash, which policyd would read as settings of
    the route, behind the check's own path."""
    target = ";mode=off/v1/chat/completions"
    subprocess.run(
        [
            *(requirements.program("curl", "curl"), "--silent", version, "--path-as-is"),
            *("--request-target", target, "--header", f"{KEY}: {enforcing}"),
            *("--header", ": ".join(JSON), "--data-binary", "@-", proxy.url),
        ],
        input=CHAT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert not upstream.received
    assert ask(proxy, enforcing, CHAT, JSON, path=target).status in (400, 404)
    assert not upstream.received


BODY = b'{"model":"m","messages":[],"user":"u-1","x":"%b"}'


def test_a_large_body(proxy: Envoy, upstream: Upstream, enforcing: str, off: str) -> None:
    """A body that Envoy cuts is denied where the key enforces, and else forwarded whole."""
    assert ask(proxy, enforcing, BODY % (b"x" * 3_999_000), JSON).status == 200
    upstream.forget()
    over = BODY % (b"x" * 4_500_000)
    answer = ask(proxy, enforcing, over, JSON)
    assert (answer.status, "let it buffer larger bodies" in answer.message) == (413, True)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(over), over)
    assert ask(proxy, enforcing, chunked, JSON, ("Transfer-Encoding", "chunked")).status == 413
    assert not upstream.received
    assert ask(proxy, off, over, JSON).status == 200
    assert upstream.received[0].length == len(over)


def test_the_settings_of_a_route(
    made: Make, start: Start, upstream: Upstream, enforcing: str
) -> None:
    """A route names its settings in the path of a check of its own; with one that policyd does not
    know nothing is allowed."""
    config = made()
    last = routes(config)[-1]
    for path, settings in {"/audit/": "mode=audit", "/bad/": "mode=odd"}.items():
        service = copy.deepcopy(ext_authz(config)["http_service"])
        service["path_prefix"] += f";{settings}"
        kind = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
        own = {"@type": kind, "check_settings": {"http_service": service}}
        per_filter = {"envoy.filters.http.ext_authz": own}
        route = last | {"match": {"prefix": path}, "typed_per_filter_config": per_filter}
        routes(config).insert(0, route)
    envoy = start(config)
    assert ask(envoy, enforcing, CHAT, JSON, path="/audit/../v1/chat/completions").status == 200
    upstream.forget()
    assert ask(envoy, enforcing, CHAT, JSON).status == 422
    assert ask(envoy, enforcing, CHAT_WITH_USER, JSON, path="/bad/").status == 400
    assert not upstream.received


def test_policyd_down(
    config: Make, start: Start, upstream: Upstream, unused_port: Callable[[], int]
) -> None:
    """While policyd is down nothing is forwarded: the answer is the gateway's own 503."""
    made = config()
    check_over_http(made, f"127.0.0.1:{unused_port()}")
    envoy = start(made)
    for method, body in (("POST", CHAT_WITH_USER), ("GET", None)):
        answer = ask(envoy, "up-any", body, JSON, method=method)
        assert answer.status == 503
        assert {*DENIAL, ("Retry-After", "1")} <= {*answer.headers}
        assert answer.body == body_of(replies.NO_DECISION)
    assert not upstream.received


def test_the_callers_token(config: Make, start: Start, tmp_path: Path, upstream: Upstream) -> None:
    """With headers_to_add Envoy shows policyd the token; without it nothing is forwarded."""
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length-0123456789\n")
    file.chmod(0o600)
    flags = ("--caller-token-file", str(file), "--http", "127.0.0.1:0")
    guarded = Policyd(tmp_path, *flags)
    made = config()
    check_over_http(made, str(guarded.http))
    try:
        assert ask(start(made), "up-any", CHAT_WITH_USER, JSON).status == 401
        shown = {"key": "x-policyd-token", "value": file.read_text().strip()}
        asking = ext_authz(made)["http_service"]["authorization_request"]
        asking["headers_to_add"].append(shown)
        assert ask(start(made), "up-any", CHAT_WITH_USER, JSON).status == 403
    finally:
        assert guarded.stop() == 0, guarded.errors
    assert not upstream.received


@pytest.fixture(scope="module")
def keys(policyd: Policyd) -> Keys:
    return Keys(policyd)


@pytest.mark.timeout(600)
@conformance.over_http_by_file
def test_vectors(
    vectors: tuple[Vector, ...],
    subtests: pytest.Subtests,
    keys: Keys,
    proxy: Envoy,
    upstream: Upstream,
) -> None:
    """Envoy answers a denied request byte for byte, and sends an allowed one upstream."""

    def check(vector: Vector) -> None:
        if vector.id not in NOT_ASKED:
            secret = keys.secret(vector.key)
            conformance.check_over_http(
                vector, proxy.url, secret, upstream, refused=REFUSED | EMPTY
            )

    conformance.check_each(subtests, vectors, check)
