"""The hook in a real LiteLLM proxy, before a demo upstream and a real policyd."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import yaml

from integrations.litellm.proxy import (
    CHAT,
    CHAT_WITH_USER,
    ENFORCE,
    FOLDER,
    JSON,
    MASTER,
    LiteLLM,
    chat,
    send,
)
from policyd.demo.received import Received
from policyd.engine import denial
from policyd.engine.places import SAFETY_HEADER
from tests.support import conformance
from tests.support.conformance import Keys, Vector
from tests.support.ports import unused_port
from tests.support.raw_http import NO_USER
from tests.support.stack import Upstream

# LiteLLM takes seconds to start, and the first requests take it seconds, too.
pytestmark = pytest.mark.timeout(600)

# Denied vectors that LiteLLM does not deny, and why.
WEAKER = {
    # LiteLLM sends the last of a repeated field upstream.
    "forms/twice_blank_first": "field",
    "max_prompt_chars/twice": "messages",
    # LiteLLM answers by itself, and calls no hook.
    "keys/missing_out_of_scope": "models",
}
# Vectors whose end user LiteLLM does not send upstream, so that there is none to judge.
WITHOUT_END_USER = {f"user_format/header_and_{what}" for what in ("body", "several", "too_long")}


def test_the_seeds_request(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """A request without a user gets status, content type and bytes of docs/contract.md,
    section 4.
    """
    upstream.forget()
    response = chat(proxy, keys.secret(ENFORCE), CHAT, ("Origin", "http://page.test"))
    assert (response.status, response.body) == (422, NO_USER)
    assert response.all("content-type") == ["application/json"]
    assert response.all("access-control-allow-origin") == ["*"]
    assert not upstream.received


def test_with_user(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """A request with a user is answered, and its user is forwarded."""
    upstream.forget()
    assert chat(proxy, keys.secret(ENFORCE), CHAT_WITH_USER).status == 200
    (received,) = upstream.received
    assert json.loads(received.body)["user"] == "alice"
    assert not [name for name, _ in received.headers if name.startswith(b"x-usagepanda-")]


@pytest.mark.parametrize("user", ["null", '""', '" "', "false", "0", "1", "true", "[]", "{}"])
def test_what_is_no_user(proxy: LiteLLM, keys: Keys, upstream: Upstream, user: str) -> None:
    """A value that is no user is denied with the bytes of docs/contract.md, section 4."""
    upstream.forget()
    body = CHAT[:-1] + b',"user":' + user.encode() + b"}"
    response = chat(proxy, keys.secret(ENFORCE), body)
    assert (response.status, response.body) == (422, NO_USER)
    assert not upstream.received


def test_a_stream_comes_chunk_by_chunk(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """The client gets the first chunk before the second is sent, and none without a user."""
    stream = CHAT_WITH_USER[:-1] + b',"stream":true}'
    chat(proxy, keys.secret(ENFORCE), stream)
    upstream.hold()

    async def exchange() -> bytes:
        host, port = proxy.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = [
            *("POST /v1/chat/completions HTTP/1.1", "Host: x", "Connection: close"),
            *(": ".join(MASTER), ": ".join(JSON), f"Content-Length: {len(stream)}"),
            *(f"x-usagepanda-api-key: {keys.secret(ENFORCE)}", "", ""),
        ]
        writer.write("\r\n".join(head).encode() + stream)
        first = await asyncio.wait_for(reader.readuntil(b"data: "), 60)
        await asyncio.to_thread(upstream.let_go)
        rest = await reader.read()
        writer.close()
        return first + rest

    assert b"data: [DONE]" in asyncio.run(exchange())
    denied = chat(proxy, keys.secret(ENFORCE), CHAT[:-1] + b',"stream":true}')
    assert (denied.status, denied.body) == (422, NO_USER)
    assert denied.all("content-type") == ["application/json"]


def test_keys(proxy: LiteLLM, upstream: Upstream) -> None:
    """A request without a policyd key, or with an unknown one, is denied with 403."""
    upstream.forget()
    missing = send(proxy, "/v1/chat/completions", CHAT_WITH_USER)
    unknown = chat(proxy, "up-" + "0" * 48, CHAT_WITH_USER)
    assert (missing.status, unknown.status) == (403, 403)
    assert b"No API key was given" in missing.body
    assert b"is not valid here" in unknown.body
    assert not upstream.received


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/completions", b'{"model":"gpt-3.5-turbo-instruct","prompt":"Hello"}'),
        ("/v1/embeddings", b'{"model":"text-embedding-3-small","input":"Hello"}'),
        ("/v1/responses", b'{"model":"gpt-4o-mini","input":"Hello"}'),
        ("/chat/completions", CHAT),
        ("/engines/gpt-4o-mini/chat/completions", CHAT),
        ("/openai/deployments/gpt-4o-mini/chat/completions", CHAT),
        ("/v1/images/generations", b'{"model":"gpt-image-1","prompt":"Hello"}'),
        ("/interactions", b'{"model":"gpt-4o-mini","input":"Hello"}'),
    ],
)
def test_the_other_endpoints(
    proxy: LiteLLM, keys: Keys, upstream: Upstream, target: str, body: bytes
) -> None:
    """Each endpoint denies a request without a user, and answers one with a user."""
    upstream.forget()
    headers = [("x-usagepanda-api-key", keys.secret(ENFORCE))]
    denied = send(proxy, target, body, headers)
    assert denied.status == 422
    # For images LiteLLM rewrites the error, with the status as its code.
    is_rewritten = target == "/v1/images/generations"
    assert denied.body == (
        NO_USER.replace(b'"code":null', b'"code":"422"') if is_rewritten else NO_USER
    )
    assert not upstream.received
    assert send(proxy, target, body[:-1] + b',"user":"alice"}', headers).status == 200
    assert len(upstream.received) == 1


def test_what_litellm_passes_through(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """LiteLLM shows the hook no headers here: a request is denied unless the operator set a key."""
    upstream.forget()
    headers = [("x-usagepanda-api-key", keys.secret(ENFORCE))]
    response = send(proxy, "/openai/v1/chat/completions", CHAT, headers)
    assert response.status == 403
    assert not upstream.received


def test_what_claims_to_be_another_request(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """A passed-through body that describes another request is not believed."""
    headers = {"x-usagepanda-api-key": keys.secret(ENFORCE)}
    claim = {"method": "GET", "url": "http://x/v1/models", "headers": headers, "body": {}}
    body = json.dumps(json.loads(CHAT) | {"proxy_server_request": claim}).encode()
    assert send(proxy, "/openai/v1/chat/completions", body).status == 403


@pytest.mark.parametrize(
    "rewriting",
    [
        '"extra_body":{"user":""}',
        '"extra_body":{"user":null}',
        '"additional_drop_params":["user"]',
        '"fallbacks":[{"model":"gpt-4o-mini","user":""}]',
    ],
)
def test_fields_that_rewrite_the_user(
    proxy: LiteLLM, keys: Keys, upstream: Upstream, rewriting: str
) -> None:
    """A body that makes LiteLLM send another user than it names, or none, is denied."""
    upstream.forget()
    body = CHAT_WITH_USER[:-1] + f",{rewriting}}}".encode()
    response = chat(proxy, keys.secret(ENFORCE), body)
    assert (response.status, response.body) == (422, NO_USER)
    assert not upstream.received
    others = CHAT_WITH_USER[:-1] + b',"extra_body":{"seed":1},"additional_drop_params":["seed"]}'
    assert chat(proxy, keys.secret(ENFORCE), others).status == 200


def user_of(received: Received) -> str:
    """The user that the upstream received, in JSON or in a form."""
    content_type, body = received.header(b"content-type"), bytes(received.body)
    if content_type == "application/json":
        return str(json.loads(body)["user"])
    if content_type == "application/x-www-form-urlencoded":
        return parse_qs(body.decode())["user"][-1]
    field = re.search(rb'name="user"\r\n\r\n(.*?)\r\n', body)
    return field[1].decode() if field else ""


@conformance.over_http
def test_vectors(
    proxy: LiteLLM,
    keys: Keys,
    upstream: Upstream,
    vector: Vector,
    record_property: Callable[[str, str], None],
) -> None:
    """No vector that is to be denied is forwarded, except those listed above with their reason.

    LiteLLM rewrites requests, so an allowed one need only arrive.
    """
    upstream.forget()
    response = conformance.send(vector, proxy.url, keys.secret(vector.key), headers=[MASTER])
    if vector.response is None:
        outcome = "allowed, and went upstream" if upstream.received else "allowed, but not served"
    elif vector.id in WEAKER:
        outcome = "to be denied, but answered"
        assert response.status == 200
    elif vector.id in WITHOUT_END_USER:
        outcome = "to be denied, but sent upstream without its end user"
        assert upstream.received
        for received in upstream.received:
            assert b"ada@example.com" not in received.body
            assert SAFETY_HEADER.encode() not in dict(received.headers)
    elif vector.response.status != 422 and upstream.received:
        # policyd does not read such a body, as its readers may differ. Here LiteLLM alone reads it.
        outcome = "to be denied as unreadable, but rewritten and sent upstream with its user"
        assert all(user_of(received).strip(" \0") for received in upstream.received)
    else:
        expected = (vector.response.status, vector.response.body.encode())
        is_exact = (response.status, response.body) == expected
        outcome = "denied to the byte" if is_exact else "denied in other words"
        assert response.status >= 300
        assert not upstream.received
    record_property("vector", outcome)


def test_without_policyd(upstream: Upstream, keys: Keys) -> None:
    """While policyd is away nothing is forwarded, and the denial tells the client to try again."""
    upstream.forget()
    env = {"POLICYD_TARGET": f"127.0.0.1:{unused_port()}"}
    proxy = LiteLLM(FOLDER / "config.yaml", unused_port(), upstream.url, env)
    for body in (CHAT, CHAT_WITH_USER):
        response = chat(proxy, keys.secret(ENFORCE), body)
        assert (response.status, response.body) == (503, denial.NO_DECISION.body)
        assert response.all("retry-after") == ["1"]
    assert not upstream.received
    proxy.stop()


def test_litellms_own_enforce_user_param(upstream: Upstream, tmp_path: Path) -> None:
    """LiteLLM's own setting allows null and an empty string, and answers 401, as documented."""
    config = yaml.safe_load((FOLDER / "config.yaml").read_text())
    del config["litellm_settings"]["callbacks"]
    config["general_settings"]["enforce_user_param"] = True
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    proxy = LiteLLM(path, unused_port(), upstream.url, {})
    assert send(proxy, "/v1/chat/completions", CHAT).status == 401
    for user in ("null", '""', '" "'):
        body = CHAT[:-1] + b',"user":' + user.encode() + b"}"
        assert send(proxy, "/v1/chat/completions", body).status == 200
    proxy.stop()
