"""The HTTP check, which a proxy without gRPC asks, at the level of bytes."""

import asyncio
import gzip
import json
import string
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from policyd.engine.endpoints import ENDPOINTS
from tests.support.http_checks import PATH, Pairs, about, check, evaluate
from tests.support.processes import Policyd, run
from tests.support.raw_http import (
    CHAT,
    CHAT_WITH_USER,
    NO_USER,
    ask,
    connect,
    exchange,
    parse,
    request,
)

MAX_BODY = 100_000


@pytest.fixture(scope="module")
def policyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    """A policyd that answers HTTP too."""
    folder = tmp_path_factory.mktemp("policyd")
    server = Policyd(folder, "--http", "127.0.0.1:0", "--max-body", str(MAX_BODY))
    yield server
    assert server.stop() == 0, server.errors
    assert "Traceback" not in "".join(server.errors)


@pytest.fixture(scope="module")
def url(policyd: Policyd) -> str:
    return f"http://{policyd.http}"


@pytest.fixture(scope="module")
def enforced(policyd: Policyd) -> str:
    return policyd.create_key("enforce")


@pytest.fixture(scope="module")
def audited(policyd: Policyd) -> str:
    return policyd.create_key("audit")


@pytest.fixture(scope="module")
def unenforced(policyd: Policyd) -> str:
    return policyd.create_key("off")


# --- decisions ---------------------------------------------------------------------------------


async def test_a_denial(url: str, enforced: str) -> None:
    """A denial is the contract's: status, headers first, in order and letter case, and bytes."""
    headers = [("x-usagepanda-api-key", enforced), *about()]
    raw = await exchange(url, request("POST", "/v1/check", headers, CHAT))
    assert raw.startswith(
        b"HTTP/1.1 422 Unprocessable Entity\r\n"
        b"Access-Control-Allow-Headers: *\r\n"
        b"Access-Control-Allow-Origin: *\r\n"
        b"Access-Control-Allow-Methods: OPTIONS,POST,GET\r\n"
        b"Content-Type: application/json\r\n"
    )
    assert raw.endswith(b"\r\n\r\n" + NO_USER)
    response = parse(raw)
    assert response.all("x-policyd-flags") == ["policy_enforce_user_ids"]
    (identifier,) = response.all("x-policyd-decision-id")
    last = [pair for pair in response.headers if pair[0].lower() != "connection"][-3:]
    assert [name for name, _ in last] == ["Date", "Content-Length", "x-request-id"]
    assert last[-1][1] == identifier


async def test_an_allowed_request(policyd: Policyd, url: str, enforced: str) -> None:
    """An allowed request gets 200, the decision's ID, the revision and the path upstream."""
    target = about(target="/v1//%63hat/completions/?a=1")
    headers = [("x-usagepanda-api-key", enforced), *target]
    response = await ask(url, "POST", "/v1/check", headers, CHAT_WITH_USER)
    assert (response.status, response.body) == (200, b"{}")
    assert response.all("x-policyd-upstream-path") == [PATH]
    assert int(response.all("x-policyd-revision")[0]) > 0
    assert len(response.all("x-policyd-decision-id")) == 1
    assert response.all("x-policyd-flags") == []


async def test_checks_of_another_method(url: str, enforced: str) -> None:
    """A check may be a GET with a body, as some proxies send it."""
    for body, status in ((CHAT, 422), (CHAT_WITH_USER, 200)):
        headers = [("x-usagepanda-api-key", enforced), *about()]
        assert (await ask(url, "GET", "/v1/check", headers, body)).status == status


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/check;mode=off", 200),
        ("/v1/check;mode=audit", 200),
        ("/v1/check;mode=off;max_tokens=enforce:500", 422),
        ("/v1/check;mode=off;disabled_models=enforce:m%2A,o1", 422),
        ("/v1/check;mode=off;disabled_models=enforce:o1", 200),
        ("/v1/check;mode=off;disabled_models=audit:*/v1/chat/completions", 200),
        ("/v1/check;mode=off;max_tokens=enforce:500/v1/chat/completions", 422),
        ("/v1/check;mode=off;max_tokens=enforce:500/v1/models", 200),
        ("/v1/check;", 422),
        ("/v1/check;mode=on", 400),
        ("/v1/check;mode=off;mode=audit", 400),
        ("/v1/check;max_tokens=enforce:lots", 400),
        ("/v1/check;max_poems=enforce:3", 400),
        ("/v1/check;max_tokens.override=never", 400),
    ],
)
async def test_the_routes_settings(url: str, enforced: str, path: str, status: int) -> None:
    """The check's path sets policies for a route; a slip in it allows nothing."""
    headers = [("x-usagepanda-api-key", enforced), *about()]
    assert (await ask(url, "POST", path, headers, CHAT)).status == status


async def test_audit(url: str, audited: str) -> None:
    """With audit a request that would be denied is allowed and flagged."""
    response = await check(url, audited, CHAT)
    assert response.status == 200
    assert response.all("x-policyd-flags") == ["policy_enforce_user_ids"]


async def test_the_log(policyd: Policyd, url: str, enforced: str) -> None:
    """A check is logged as the proxy describes it: with the last address of X-Forwarded-For, and
    without any secret.
    """
    told = [("X-Forwarded-For", "203.0.113.9, 192.0.2.1"), ("User-Agent", "client/1")]
    secret = ("Authorization", "Bearer sk-secret")
    response = await check(url, enforced, CHAT, *told, secret, ("X-Request-Id", "r-1"))
    (identifier,) = response.all("x-policyd-decision-id")
    line = await asyncio.to_thread(_logged, policyd, identifier)
    assert "sk-secret" not in line
    assert enforced not in line
    entry = json.loads(line)
    wanted = {"source_ip": "192.0.2.1", "user_agent": "client/1", "path": PATH, "request_id": "r-1"}
    assert {name: entry[name] for name in wanted} == wanted


def _logged(policyd: Policyd, identifier: str) -> str:
    """The record of this decision, once the log has it."""
    database = ("--database-url", policyd.database_url)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listed = run("policyd", "logs", "list", "--json", "--limit", "100", *database)
        for line in listed.stdout.decode().splitlines():
            if identifier in line:
                return line
    raise AssertionError(f"the log does not have {identifier}")


async def test_out_of_scope(url: str, enforced: str) -> None:
    """A request with another method or path is allowed unchanged, with a key in force only."""
    for method, target in [("GET", PATH), ("POST", "/v1/files"), ("DELETE", "/v1/models/m")]:
        headers = [("x-usagepanda-api-key", enforced), *about(method, target)]
        for own in ("POST", "GET"):
            response = await ask(url, own, "/v1/check", headers)
            assert response.status == 200
            assert response.all("x-policyd-upstream-path") == []
        assert (await ask(url, "POST", "/v1/check", about(method, target))).status == 403


async def test_behind_the_prefix(url: str, enforced: str) -> None:
    """/v1/check/… is about the rest of its own path, whatever path its headers name."""
    key = ("x-usagepanda-api-key", enforced)
    for method, target, headers, status in [
        ("POST", PATH, [], 422),
        ("POST", "/v1/%63hat/completions?a=1", [], 422),
        ("POST", "//v1/x/../chat/completions", [], 422),
        ("POST", PATH, about("GET", "/v1/models"), 422),
        ("GET", "/v1/models", [], 200),
        ("GET", "/v1/models#/../chat/completions", [], 400),
        ("DELETE", "/v1/models/m", about(), 200),
    ]:
        asked = await ask(url, method, "/v1/check" + target, [key, *headers], CHAT)
        assert asked.status == status


async def test_overridden_methods(url: str, enforced: str) -> None:
    """A request that a header, its query or a form may turn into a POST is judged as one, however
    the proxy describes it.
    """
    key = ("x-usagepanda-api-key", enforced)
    form = ("Content-Type", "multipart/form-data; boundary=x")
    for target, headers, status in [
        (PATH, [("X-HTTP-Method-Override", "POST")], 422),
        (PATH, [("x_http_method", "post")], 422),
        (PATH, [form], 400),  # Not every server reads it as JSON.
        (PATH + "?a&_method=Post", [], 422),
        (PATH + "?a&method=Post", [], 200),
        (PATH, [("X-HTTP-Method-Override", "PATCH")], 200),
        ("/v1/models", [("X-HTTP-Method-Override", "POST"), form], 200),
    ]:
        asked = await ask(url, "PUT", "/v1/check" + target, [key, *headers], CHAT)
        assert asked.status == status, (target, headers)
        named = about("PUT", target)
        assert (await ask(url, "POST", "/v1/check", [key, *named, *headers], CHAT)).status == status


def packed(body: bytes) -> bytes:
    """In gzip, without the time: the test has the same ID in each process."""
    return gzip.compress(body, mtime=0)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (CHAT_WITH_USER, [], 200),
        (CHAT_WITH_USER[:-1], [], 400),
        (packed(CHAT), [("Content-Encoding", "gzip")], 422),
        (packed(CHAT_WITH_USER), [("Content-Encoding", "gzip")], 200),
        (packed(CHAT_WITH_USER)[:-2], [("Content-Encoding", "gzip")], 400),
        (CHAT_WITH_USER, [("Content-Encoding", "snappy")], 415),
        (CHAT_WITH_USER, [("Content-Type", "a/b"), ("Content-Type", "c/d")], 400),
        (CHAT, [("x-usagepanda-enforce-user-ids", "false")], 200),
        (CHAT, [("x-usagepanda-enforce-user-ids", v) for v in ("false", "true")], 422),
        (b'{"user":"u-1","a":"%s"}' % (b"x" * MAX_BODY), [], 413),
        (packed(b'{"user":"u-1","a":"%s"}' % (b"x" * 2**21)),
         [("Content-Encoding", "gzip")], 413),
        (CHAT_WITH_USER, [("X-Policyd-Body", "partial")], 413),
        (CHAT_WITH_USER, [("X-Envoy-Auth-Partial-Body", "true")], 413),
        (CHAT_WITH_USER, [("X-Envoy-Auth-Partial-Body", "false")], 200),
        (CHAT_WITH_USER, [("Content-Type", "application/vnd.policyd.descriptor+json")], 200),
        (b'{"hasUser":true}', [("Content-Type", "application/vnd.policyd.descriptor+json")], 422),
    ],
)  # fmt: skip
async def test_bodies(url: str, enforced: str, body: bytes, headers: Pairs, status: int) -> None:
    """The body is read as the gateway reads it, and is never taken for a descriptor."""
    assert (await check(url, enforced, body, *headers)).status == status


async def test_a_body_that_does_not_come(
    url: str, enforced: str, audited: str, unenforced: str
) -> None:
    """A missing body is unknown, never absent: an enforcing key denies it, and names the fix."""
    for method in ("GET", "POST"):
        headers = [("x-usagepanda-api-key", enforced), *about()]
        response = await ask(url, method, "/v1/check", headers)
        assert response.status == 400
        assert b"have it send bodies to policyd" in response.body
        assert response.headers[0] == ("Access-Control-Allow-Headers", "*")
        assert len(response.all("x-policyd-decision-id")) == 1
    assert (await check(url, unenforced, b"")).status == 200
    response = await check(url, audited, b"")
    assert response.status == 200
    assert response.all("x-policyd-flags") == ["policy_enforce_user_ids"]


async def test_a_body_that_is_cut_off(url: str, enforced: str) -> None:
    """A check that ends before its body is complete gets no answer, and affects no other one."""
    head = [("x-usagepanda-api-key", enforced), *about(), ("Content-Length", "500")]
    reader, writer = await connect(url)
    writer.write(request("POST", "/v1/check", head) + CHAT_WITH_USER)
    writer.write_eof()
    assert not (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert (await check(url, enforced, CHAT_WITH_USER)).status == 200


async def test_bodies_far_over_the_bound(url: str, enforced: str, unenforced: str) -> None:
    """Such bodies are discarded, so that their sender gets the answer, and allowed where the key
    does not enforce.
    """
    body = b" " * 20 * 2**20
    assert (await check(url, enforced, body)).status == 413
    assert (await check(url, unenforced, body)).status == 200
    assert (await check(url, "", body)).status == 403


# --- checks that cannot be made ----------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Forwarded-Method", "POST")],
        [("X-Forwarded-Uri", PATH)],
        [*about(), ("X-Forwarded-Method", "GET")],
        [*about(), ("X-Original-URI", "/v1/models")],
        [*about(), ("X-Original-Method", "GET")],
        about("POST, GET"),
        about("PO ST"),
        about("GET", f"/v1/models, {PATH}"),
        about("GET", ""),
        about("", PATH),
        about("GET", "v1/models"),
        about("GET", "/v1/models#/../chat/completions"),
    ],
)
async def test_which_request_it_is(url: str, enforced: str, headers: Pairs) -> None:
    """A check that does not clearly name its request is answered 400."""
    pairs = [("x-usagepanda-api-key", enforced), *headers]
    response = await ask(url, "POST", "/v1/check", pairs, CHAT_WITH_USER)
    assert response.status == 400
    assert json.loads(response.body)["error"]["type"] == "invalid_request"
    assert response.all("x-policyd-decision-id") == []


@pytest.mark.parametrize(
    "target", [f"https://x?{PATH}", "https://x", "http://x" + PATH.replace("/", "\\")]
)
async def test_urls_without_a_clear_path(url: str, enforced: str, target: str) -> None:
    """Where servers may differ on where a URL's host ends, the request counts as in scope."""
    pairs = [("x-usagepanda-api-key", enforced), *about("POST", target)]
    assert (await ask(url, "POST", "/v1/check", pairs, CHAT)).status == 422
    assert (await ask(url, "POST", "/v1/check", pairs, CHAT_WITH_USER)).status == 200


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("POST", "/v1/checks"),
        ("POST", "/v1/%63heck"),
        ("POST", "/v1/chat/completions"),
        ("OPTIONS", "*"),
    ],
)
async def test_other_paths(url: str, enforced: str, method: str, target: str) -> None:
    """No other path is served, and none answers 200."""
    headers = [("x-usagepanda-api-key", enforced), *about()]
    response = await ask(url, method, target, headers, CHAT_WITH_USER)
    assert response.status in (400, 404)
    assert b'{"error":{"message":"Usage Panda: ' in response.body


async def test_web_sockets(url: str, enforced: str) -> None:
    """WebSockets are denied with 426, as no policy can see into them."""
    headers = [("x-usagepanda-api-key", enforced), *about("GET", "/v1/realtime")]
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    data = request("GET", "/v1/check", [*headers, *upgrade])
    assert parse(await exchange(url, data)).status == 426


async def test_what_is_not_http(url: str) -> None:
    """Input that is not HTTP is answered 400 in OpenAI's shape."""
    response = parse(await exchange(url, b"POST /v1/check HTTP/1.1\r\nA : b\r\n\r\n"))
    assert response.status == 400
    assert b"not well-formed HTTP" in response.body


# --- descriptors -------------------------------------------------------------------------------


async def test_descriptors(url: str, enforced: str) -> None:
    """A descriptor is answered 200 with the decision in JSON, or with the denial itself."""
    descriptor = {"key": enforced, "method": "POST", "path": "/v1//embeddings"}
    allowed = await evaluate(url, descriptor | {"user": "u-1"})
    assert allowed.status == 200
    decision = json.loads(allowed.body)
    assert decision["decision"] == "DECISION_ALLOW"
    assert decision["upstreamPath"] == "/v1/embeddings"
    assert allowed.all("x-policyd-decision-id") == [decision["decisionId"]]
    denied = await evaluate(url, descriptor | {"hasUser": False})
    assert (denied.status, denied.body) == (422, NO_USER)
    assert denied.headers[0] == ("Access-Control-Allow-Headers", "*")
    body = {"content": "eyJ1c2VyIjoidS0xIn0="}
    assert (await evaluate(url, descriptor | {"rawBody": body})).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"hasUser":true}{}',
        b'{"hasUser":"yes"}',
        b'{"has_users":true}',
        b'{"hasUser":true,"hasUser":false}',
        b'{"key":"\\ud800"}',
        b'{"userState":99}',
        b'{"key":' + b"[" * 100_000,
        b"{}",
    ],
)
async def test_malformed_descriptors(url: str, body: bytes) -> None:
    """Malformed descriptors are answered 400 with the reason."""
    response = await evaluate(url, body)
    assert response.status == 400
    assert json.loads(response.body)["error"]["message"].startswith("Usage Panda: ")


async def test_descriptors_that_cannot_be_answered(url: str, enforced: str) -> None:
    """A large descriptor gets 413, a future revision 503, and another method 400."""
    descriptor = {"key": enforced, "hasUser": True}
    assert (await evaluate(url, descriptor | {"user": "x" * 5 * 2**20})).status == 413
    ahead = await evaluate(url, descriptor | {"minRevision": 10**6})
    assert ahead.status == 503
    assert ahead.all("retry-after")[0] in {"1", "2", "3"}
    assert (await ask(url, "GET", "/v1/evaluate")).status == 400


# --- every request -----------------------------------------------------------------------------

SPELLINGS = st.sampled_from([f"/v1{path}" for path in ENDPOINTS]).flatmap(
    lambda path: st.sampled_from(
        [path, path.upper(), f"/{path}", f"{path}/", f"{path}?a=1", f"/x/..{path}", f"{path};a",
         path.replace("e", "%65"), f"http://api.openai.com{path}", f"{path}%20"]
    )
)  # fmt: skip
TEXT = st.text(string.printable.strip() + "\u00e9", max_size=30)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["Content-Type", "Content-Encoding", "X-Forwarded-For", "X-Policyd-Body", "Connection",
             "X-Original-Uri", "X-Original-Method", "Authorization", "X-Request-Id", "Accept",
             "x-usagepanda-trace-id", "X-Policyd-Token", "Forwarded", "Host"]
        ),
        TEXT,
    ),
    max_size=4,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
USERLESS = st.one_of(
    st.binary(max_size=50),
    st.dictionaries(st.text(max_size=8).filter(lambda name: name != "user"), JSON).map(
        lambda content: json.dumps(content).encode()
    ),
    st.sampled_from([None, "", " ", 0, 1, True, [], ["u-1"], {"user": "u-1"}]).map(
        lambda user: json.dumps({"user": user}).encode()
    ),
)
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(target=SPELLINGS, headers=HEADERS, body=USERLESS, prefixed=st.booleans())
def test_no_request_without_user_is_allowed(
    url: str, enforced: str, target: str, headers: Pairs, body: bytes, prefixed: bool
) -> None:
    """Where the key enforces, no request without a user is allowed, whatever its spelling, its
    headers and its body.
    """
    own = f"/v1/check{target}" if prefixed and target.startswith("/") else "/v1/check"
    pairs = [("x-usagepanda-api-key", enforced), *headers]
    if own == "/v1/check":
        pairs += about(target=target)
    response = asyncio.run(ask(url, "POST", own, pairs, body))
    assert 400 <= response.status < 500
    assert json.loads(response.body)["error"]["message"].startswith("Usage Panda: ")


@FUZZ
@given(
    head=st.binary(max_size=60),
    lines=st.lists(st.binary(max_size=30), max_size=5),
    body=st.binary(max_size=60),
)
@example(head=b"POST /v1/check HTTP/1.1", lines=[b"Transfer-Encoding: chunked"], body=b"zz\r\n")
@example(head=b"POST /v1/check HTTP/9.9", lines=[b":"], body=b"")
def test_no_bytes_crash_it(
    url: str, enforced: str, head: bytes, lines: list[bytes], body: bytes
) -> None:
    """Whatever bytes arrive, only a check can be allowed, and the next check is answered."""
    data = b"\r\n".join([head, *lines, b"Connection: close", b"", body])
    answer = asyncio.run(_until_silent(url, data))
    assert not answer.startswith(b"HTTP/1.1 200")
    assert asyncio.run(check(url, enforced, CHAT_WITH_USER)).status == 200


async def _until_silent(url: str, data: bytes) -> bytes:
    reader, writer = await connect(url)
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
