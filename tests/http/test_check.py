"""The HTTP check, which a proxy without gRPC asks, at the level of bytes."""

import asyncio
import gzip
import json
import string

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from policyd.engine import endpoints
from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.places import IDENTIFIERS
from tests.support import examples
from tests.support.commands import logged
from tests.support.http_checks import PATH, Pairs, about, check, evaluate
from tests.support.processes import Policyd
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

# --- decisions ---------------------------------------------------------------------------------


async def test_a_denial(url: str, enforcing: str) -> None:
    """A denial is that of docs/contract.md, section 4: status, headers first, in order and letter
    case, and bytes.
    """
    headers = [("x-usagepanda-api-key", enforcing), *about()]
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


async def test_an_allowed_request(policyd: Policyd, url: str, enforcing: str) -> None:
    """An allowed request gets 200, the decision's ID, the revision and the path upstream."""
    target = about(target="/v1//%63hat/completions/?a=1")
    headers = [("x-usagepanda-api-key", enforcing), *target]
    response = await ask(url, "POST", "/v1/check", headers, CHAT_WITH_USER)
    assert (response.status, response.body) == (200, b"{}")
    assert response.all("x-policyd-upstream-path") == [PATH]
    assert int(response.all("x-policyd-revision")[0]) > 0
    assert len(response.all("x-policyd-decision-id")) == 1
    assert response.all("x-policyd-flags") == []


async def test_checks_of_another_method(url: str, enforcing: str) -> None:
    """A check may be a GET with a body, as some proxies send it."""
    for body, status in ((CHAT, 422), (CHAT_WITH_USER, 200)):
        headers = [("x-usagepanda-api-key", enforcing), *about()]
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
async def test_the_routes_settings(url: str, enforcing: str, path: str, status: int) -> None:
    """The check's path sets policies for a route; a slip in it allows nothing."""
    headers = [("x-usagepanda-api-key", enforcing), *about()]
    assert (await ask(url, "POST", path, headers, CHAT)).status == status


async def test_audit(url: str, audited: str) -> None:
    """With audit a request that would be denied is allowed and flagged."""
    response = await check(url, audited, CHAT)
    assert response.status == 200
    assert response.all("x-policyd-flags") == ["policy_enforce_user_ids"]


async def test_the_log(policyd: Policyd, url: str, enforcing: str) -> None:
    """A check is logged as the proxy describes it: with the last address of X-Forwarded-For, and
    without any secret.
    """
    told = [("X-Forwarded-For", "203.0.113.9, 192.0.2.1"), ("User-Agent", "client/1")]
    secret = ("Authorization", "Bearer sk-secret")
    response = await check(url, enforcing, CHAT, *told, secret, ("X-Request-Id", "r-1"))
    (identifier,) = response.all("x-policyd-decision-id")
    entry = await asyncio.to_thread(logged, policyd.database_url, identifier)
    assert "sk-secret" not in str(entry)
    assert enforcing not in str(entry)
    wanted = {"source_ip": "192.0.2.1", "user_agent": "client/1", "path": PATH, "request_id": "r-1"}
    assert {name: entry[name] for name in wanted} == wanted


async def test_out_of_scope(url: str, enforcing: str) -> None:
    """A request with another method or path is allowed unchanged, with a key in force only."""
    for method, target in [("GET", PATH), ("POST", "/v1/files"), ("DELETE", "/v1/models/m")]:
        headers = [("x-usagepanda-api-key", enforcing), *about(method, target)]
        for own in ("POST", "GET"):
            response = await ask(url, own, "/v1/check", headers)
            assert response.status == 200
            assert response.all("x-policyd-upstream-path") == []
        assert (await ask(url, "POST", "/v1/check", about(method, target))).status == 403


async def test_behind_the_prefix(url: str, enforcing: str) -> None:
    """/v1/check/… is about the rest of its own path, whatever path its headers name."""
    key = ("x-usagepanda-api-key", enforcing)
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


async def test_overridden_methods(url: str, enforcing: str) -> None:
    """A request that a header, its query or a form may turn into a POST is judged as one, however
    the proxy describes it.
    """
    key = ("x-usagepanda-api-key", enforcing)
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
        (CHAT_WITH_USER, [("X-Policyd-Body", "partial")], 413),
        (CHAT_WITH_USER, [("X-Envoy-Auth-Partial-Body", "true")], 413),
        (CHAT_WITH_USER, [("X-Envoy-Auth-Partial-Body", "false")], 200),
        (CHAT_WITH_USER, [("Content-Type", "application/vnd.policyd.descriptor+json")], 200),
        (b'{"hasUser":true}', [("Content-Type", "application/vnd.policyd.descriptor+json")], 422),
    ],
)  # fmt: skip
async def test_bodies(url: str, enforcing: str, body: bytes, headers: Pairs, status: int) -> None:
    """The body is read as the gateway reads it, and is never taken for a descriptor."""
    assert (await check(url, enforcing, body, *headers)).status == status


async def test_a_body_that_does_not_come(url: str, enforcing: str, audited: str, off: str) -> None:
    """A missing body is unknown, never absent: an enforcing key denies it, and names the fix."""
    for method in ("GET", "POST"):
        headers = [("x-usagepanda-api-key", enforcing), *about()]
        response = await ask(url, method, "/v1/check", headers)
        assert response.status == 400
        assert b"have it send bodies to policyd" in response.body
        assert response.headers[0] == ("Access-Control-Allow-Headers", "*")
        assert len(response.all("x-policyd-decision-id")) == 1
    assert (await check(url, off, b"")).status == 200
    response = await check(url, audited, b"")
    assert response.status == 200
    assert response.all("x-policyd-flags") == ["policy_enforce_user_ids"]


async def test_a_body_that_is_cut_off(url: str, enforcing: str) -> None:
    """A check that ends before its body is complete gets no answer, and affects no other one."""
    head = [("x-usagepanda-api-key", enforcing), *about(), ("Content-Length", "500")]
    reader, writer = await connect(url)
    writer.write(request("POST", "/v1/check", head) + CHAT_WITH_USER)
    writer.write_eof()
    assert not (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert (await check(url, enforcing, CHAT_WITH_USER)).status == 200


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
async def test_which_request_it_is(url: str, enforcing: str, headers: Pairs) -> None:
    """A check that does not clearly name its request is answered 400."""
    pairs = [("x-usagepanda-api-key", enforcing), *headers]
    response = await ask(url, "POST", "/v1/check", pairs, CHAT_WITH_USER)
    assert response.status == 400
    assert json.loads(response.body)["error"]["type"] == "invalid_request"
    assert response.all("x-policyd-decision-id") == []


@pytest.mark.parametrize(
    "target", [f"https://x?{PATH}", "https://x", "http://x" + PATH.replace("/", "\\")]
)
async def test_urls_without_a_clear_path(url: str, enforcing: str, target: str) -> None:
    """Where servers may differ on where a URL's host ends, the request counts as in scope."""
    pairs = [("x-usagepanda-api-key", enforcing), *about("POST", target)]
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
async def test_other_paths(url: str, enforcing: str, method: str, target: str) -> None:
    """No other path is served, and none answers 200."""
    headers = [("x-usagepanda-api-key", enforcing), *about()]
    response = await ask(url, method, target, headers, CHAT_WITH_USER)
    assert response.status in (400, 404)
    assert b'{"error":{"message":"Usage Panda: ' in response.body


async def test_web_sockets(url: str, enforcing: str) -> None:
    """WebSockets are denied with 426, as no policy can see into them."""
    headers = [("x-usagepanda-api-key", enforcing), *about("GET", "/v1/realtime")]
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    data = request("GET", "/v1/check", [*headers, *upgrade])
    assert parse(await exchange(url, data)).status == 426


async def test_what_is_not_http(url: str) -> None:
    """Input that is not HTTP is answered 400 in OpenAI's shape."""
    response = parse(await exchange(url, b"POST /v1/check HTTP/1.1\r\nA : b\r\n\r\n"))
    assert response.status == 400
    assert b"not well-formed HTTP" in response.body


# --- descriptors -------------------------------------------------------------------------------


async def test_descriptors(url: str, enforcing: str) -> None:
    """A descriptor is answered 200 with the decision in JSON, or with the denial itself."""
    descriptor = {"key": enforcing, "method": "POST", "path": "/v1//embeddings"}
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


async def test_descriptors_that_cannot_be_answered(url: str, enforcing: str) -> None:
    """A large descriptor gets 413, a future revision 503, and another method 400."""
    descriptor = {"key": enforcing, "hasUser": True}
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
    examples.NAMELESS,
    st.dictionaries(st.text(max_size=8).filter(lambda name: name != "user"), JSON).map(
        lambda content: json.dumps(content).encode()
    ),
    st.sampled_from([None, "", " ", 0, 1, True, [], ["u-1"], {"user": "u-1"}]).map(
        lambda user: json.dumps({"user": user}).encode()
    ),
)
FUZZ = settings(
    max_examples=examples.times(1.5),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(target=SPELLINGS, headers=HEADERS, body=USERLESS, prefixed=st.booleans())
def test_no_request_without_user_is_allowed(
    url: str, enforcing: str, target: str, headers: Pairs, body: bytes, prefixed: bool
) -> None:
    """Where the key enforces, no request without a user is allowed, whatever its spelling, its
    headers and its body.
    """
    own = f"/v1/check{target}" if prefixed and target.startswith("/") else "/v1/check"
    pairs = [("x-usagepanda-api-key", enforcing), *headers]
    if own == "/v1/check":
        pairs += about(target=target)
    endpoint = endpoints.resolve("POST", target).endpoint
    assume(endpoint is None or endpoint.is_for(IDENTIFIERS))  # The others are not this key's.
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
    url: str, enforcing: str, head: bytes, lines: list[bytes], body: bytes
) -> None:
    """Whatever bytes arrive, only a check can be allowed, and the next check is answered."""
    data = b"\r\n".join([head, *lines, b"Connection: close", b"", body])
    answer = asyncio.run(_until_silent(url, data))
    assert not answer.startswith(b"HTTP/1.1 200")
    assert asyncio.run(check(url, enforcing, CHAT_WITH_USER)).status == 200


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
