"""No spelling of a path escapes the policy, and no other path is touched."""

import pytest

from policyd.engine.endpoints import canonical_path
from tests.gateway.conftest import IN_SESSION, Serving
from tests.support.raw_http import CHAT, CHAT_WITH_USER, Demo, ask, serving_wire

pytestmark = IN_SESSION

SPELLINGS = [
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/chat/completions?x=1",
    "/v1/chat/completions?",
    "/v1/chat/completions/",
    "/v1/chat/completions#fragment",
    "/v1/Chat/Completions",
    "/V1/CHAT/COMPLETIONS",
    "//v1//chat//completions",
    "/v1/./chat/../chat/completions",
    "/v1/%63hat/completions",
    "/v1/chat%2Fcompletions",
    "/v1%2fchat%2fcompletions",
    "/v1/chat/completions%20",
    "/v1/chat/completions%0A",
    "/v1/chat/completions%00",
    "/v1/chat/completions%C2%A0",
    "/v1\\chat\\completions",
    "/v1/chat/completions;a=b",
    "/v1;a/chat;b/completions",
    "/x/..;/v1/chat/completions",
    "//elsewhere.test/v1/chat/completions",
    "http://elsewhere.test/v1/chat/completions",
    "/openai/deployments/gpt/chat/completions?api-version=1",
    "/openai/v1/chat/completions",
]


@pytest.mark.parametrize("target", SPELLINGS)
async def test_spellings(gateway: str, upstream: Demo, enforcing: str, target: str) -> None:
    """Every spelling of a path in scope is denied without a user."""
    headers = [("x-usagepanda-api-key", enforcing)]
    assert (await ask(gateway, "POST", target, headers, CHAT)).status == 422
    assert not upstream.app.record


@pytest.mark.parametrize(
    "target",
    [
        "/v1/chat/completions",
        "/chat/completions",
        "/api/v1/chat/completions",
        "/API/../api/v1/chat/completions",
        "/../../api/v1/chat/completions",
        "/api/v1/chat/%63ompletions",
        "//x/../api/v1//chat/completions",
    ],
)
async def test_behind_a_path_of_the_upstream(serving: Serving, enforcing: str, target: str) -> None:
    """Where the upstream has a path of its own, no spelling slips past the policy either."""
    headers = [("x-usagepanda-api-key", enforcing)]
    async with serving_wire() as wire, serving(f"{wire.url}/api/v1") as server:
        answer = await ask(server.url, "POST", target, headers, CHAT)
        if answer.status == 200:
            came = canonical_path(wire.head[0].split()[1])
            assert came == "/api/v1/api/v1/chat/completions", "that is another path"
        else:
            assert answer.status in (400, 422)
            assert not wire.received


BEHIND = {
    "Azure": ("/openai", "/openai/deployments/GPT/chat/completions", None),
    "Azure without its prefix": ("/openai", "/deployments/GPT/chat/completions", None),
    "a word in capitals": ("/OpenAI", "/deployments/GPT/Chat/Completions", None),
    "half an endpoint": ("/v1/chat", "/completions", None),
    "half an endpoint, sent too": ("/v1/chat", "/v1/chat/Completions/", None),
    "half an endpoint in capitals": ("/V1/Images", "/generations", None),
    "a whole endpoint": ("/v1/chat/completions", "/", "/v1/chat/completions"),
    "a whole endpoint, sent too": ("/v1/embeddings", "/v1/embeddings/", "/v1/embeddings"),
    "a name": ("/Team%20A/openai", "/v1//embeddings", "/Team%20A/openai/v1/embeddings"),
    "a deployment": ("/openai/deployments/V1", "/embeddings", None),
    "twice": ("/api/v1", "/api/v1/api/v1/chat/completions", "/api/v1/api/v1/chat/completions"),
    "dot segments": ("/v1", "/files/../chat/completions", "/v1/chat/completions"),
}


@pytest.mark.parametrize(("base", "target", "passed"), BEHIND.values(), ids=BEHIND)
async def test_what_is_judged_is_what_is_sent(
    serving: Serving, enforcing: str, base: str, target: str, passed: str | None
) -> None:
    """The gateway judges the path that goes upstream, with the operator's part of it."""
    headers = [("x-usagepanda-api-key", enforcing), ("Content-Type", "application/json")]
    async with serving_wire() as wire, serving(wire.url + base) as server:
        assert (await ask(server.url, "POST", target, headers, CHAT)).status == 422
        assert not wire.received
        assert (await ask(server.url, "POST", target, headers, CHAT_WITH_USER)).status == 200
    sent = wire.head[0].split()[1]
    assert sent.startswith(base)
    if passed is None:
        rest = target.removeprefix(base).rstrip("/").lower().replace("gpt", "GPT")
        passed = base + rest
    assert sent == passed


@pytest.mark.parametrize(
    "target",
    [
        "/../other",
        "/%2e%2e/other",
        "/api/v1/../../other",
        "/..;/x",
        "/a%2Fb/../../other",
        "/a\\b/../../other",
        "/a//../../other",
        "/%252e%252e/other",
        "/a/..%3Fx",
    ],
)
async def test_out_of_the_path_of_the_upstream(open_door: Serving, target: str) -> None:
    """No client reaches a path that the operator did not choose."""
    async with serving_wire() as wire, open_door(f"{wire.url}/api/v1") as server:
        assert (await ask(server.url, "GET", target)).status == 400
        assert not wire.received
        assert (await ask(server.url, "GET", "/models/a%2Fb")).status == 200
    assert wire.head[0] == "GET /api/v1/models/a%2Fb HTTP/1.1"


@pytest.mark.parametrize("target", SPELLINGS)
async def test_what_goes_upstream(
    gateway: str, upstream: Demo, enforcing: str, target: str
) -> None:
    """In scope the canonical path goes upstream, so that the upstream reads what policyd judged."""
    headers = [("x-usagepanda-api-key", enforcing)]
    assert (await ask(gateway, "POST", target, headers, CHAT_WITH_USER)).status in (200, 404)
    (passed,) = upstream.targets
    prefix = (
        passed.removesuffix("?x=1").removesuffix("?api-version=1").removesuffix("/chat/completions")
    )
    assert prefix in ("", "/v1", "/openai/v1", "/openai/deployments/gpt", "/elsewhere.test/v1")


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models",
        "/v1/files?purpose=fine%2Dtune&a=%20b+c;d=%zz&&e=\"{}|^`'",
        "/v1//Files/../%2e%2E/a%2Fb/;x=1/",
        "/v1/models/ft%3Agpt-4?",
        "/%E2%82%AC/%ff?%ff",
    ],
)
async def test_other_paths(open_door: Serving, upstream: Demo, off: str, target: str) -> None:
    """Out of scope, path and query are forwarded byte for byte."""
    async with serving_wire() as wire, open_door(wire.url) as server:
        headers = [("x-usagepanda-api-key", off)]
        assert (await ask(server.url, "GET", target, headers)).status == 200
    assert wire.head[0] == f"GET {target.removesuffix('?')} HTTP/1.1"


async def test_the_query_in_scope(gateway: str, upstream: Demo, enforcing: str) -> None:
    """The query of a request in scope is forwarded unchanged."""
    query = "?a=%20b+c;d=%2F//../&e=%zz"
    headers = [("x-usagepanda-api-key", enforcing)]
    await ask(gateway, "POST", f"/v1/Embeddings/{query}", headers, b'{"user":"u"}')
    assert upstream.targets == [f"/v1/embeddings{query}"]


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "HEAD"])
async def test_other_methods(gateway: str, upstream: Demo, enforcing: str, method: str) -> None:
    """Other methods are not in scope, and are forwarded with their body."""
    headers = [("x-usagepanda-api-key", enforcing)]
    await ask(gateway, method, "/v1/chat/completions/", headers, CHAT)
    (received,) = upstream.app.record
    assert received.method == method
    assert received.target == b"/v1/chat/completions/"
    assert bytes(received.body) == CHAT


@pytest.mark.parametrize(
    ("base", "target", "passed"),
    [
        ("", "/v1/models", "/v1/models"),
        ("/", "/v1/models", "/v1/models"),
        ("/v1", "/v1/models", "/v1/models"),
        ("/v1/", "/models", "/v1/models"),
        ("/v1", "/v1beta/models", "/v1/v1beta/models"),
        ("/team%20a/v1", "/models?x", "/team%20a/v1/models?x"),
    ],
)
async def test_an_upstream_with_a_path(
    open_door: Serving, base: str, target: str, passed: str
) -> None:
    """The upstream's path stands before the request's, unless the request has it already."""
    async with serving_wire() as wire, open_door(wire.url + base) as server:
        await ask(server.url, "GET", target)
    assert wire.head[0] == f"GET {passed} HTTP/1.1"


async def test_the_upstream_is_the_operators_choice(open_door: Serving) -> None:
    """No absolute target and no Host or forwarding header leads anywhere else."""
    async with serving_wire() as wire, open_door(wire.url) as server:
        headers = [("Host", "elsewhere.test"), ("X-Forwarded-Host", "elsewhere.test")]
        target = "http://elsewhere.test:1/v1/models"
        assert (await ask(server.url, "GET", target, headers)).status == 200
    assert wire.head[0] == "GET /v1/models HTTP/1.1"
    assert [line for line in wire.head if line.lower().startswith("host:")] == [
        f"Host: {wire.url.removeprefix('http://')}"
    ]
