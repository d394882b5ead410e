"""The response that the client gets to a denied request: docs/contract.md, sections 4 and 5."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from tests.gateway.conftest import IN_SESSION, Serving
from tests.support.raw_http import (
    CHAT,
    CHAT_WITH_USER,
    NO_USER,
    Demo,
    ask,
    connect,
    parse,
    post,
    request,
)

pytestmark = IN_SESSION

GOLDEN = Path(__file__).with_name("denial.http")


async def test_the_denial_is_exact_to_the_byte(
    gateway: str, upstream: Demo, enforcing: str
) -> None:
    """Headers stand in the contract's order and letter case, then come Date and Content-Length, and
    the decision's ID last.
    """
    reader, writer = await connect(gateway)
    headers = [f"x-usagepanda-api-key: {enforcing}", f"Content-Length: {len(CHAT)}", "Host: x"]
    lines = ["POST /v1/chat/completions HTTP/1.1", *headers, "", ""]
    writer.write("\r\n".join(lines).encode() + CHAT)
    raw = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(len(NO_USER))
    writer.close()
    raw = re.sub(rb"(?m)^Date: \w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT\r$", b"Date: DATE\r", raw)
    raw = re.sub(rb"(?m)^x-request-id: [0-9a-f]{32}\r$", b"x-request-id: DECISION\r", raw)
    raw = re.sub(
        rb"^(HTTP/1.1 422) [\w ]+", rb"\1 REASON", raw
    )  # Python changed the wording of a status.
    assert raw == GOLDEN.read_bytes()
    assert not upstream.app.record


async def test_streams_are_denied_alike(gateway: str, upstream: Demo, enforcing: str) -> None:
    """With stream: true the denial is the same JSON response."""
    body = json.dumps({**json.loads(CHAT), "stream": True}).encode()
    response = await post(gateway, enforcing, body)
    assert (response.status, response.body) == (422, NO_USER)
    assert response.all("content-type") == ["application/json"]
    assert not upstream.app.record


async def test_a_request_with_user_passes(gateway: str, upstream: Demo, enforcing: str) -> None:
    """A request with a user is answered by the upstream, its body untouched."""
    response = await post(gateway, enforcing, CHAT_WITH_USER)
    assert response.status == 200
    assert response.all("access-control-allow-origin") == ["*"]
    assert [bytes(received.body) for received in upstream.app.record] == [CHAT_WITH_USER]


async def test_the_other_modes_let_it_pass(
    gateway: str, upstream: Demo, off: str, audited: str
) -> None:
    """Off and audit forward a request without a user."""
    for key in (off, audited):
        assert (await post(gateway, key, CHAT)).status == 200
    assert len(upstream.app.record) == 2


@pytest.mark.parametrize("name", ["x-usagepanda-enforce-user-ids", "X-UsagePanda-Enforce-USER-IDS"])
async def test_the_header_overrides_the_key(
    gateway: str, enforcing: str, off: str, name: str
) -> None:
    """true and false, in any letter case of name and value, beat the key's setting."""
    assert (await post(gateway, off, CHAT, (name, "True"))).status == 422
    assert (await post(gateway, enforcing, CHAT, (name, "FALSE"))).status == 200


@pytest.mark.parametrize("value", ["1", "no", "", "false, false", "fals\u0435"])
async def test_an_unclear_header_never_weakens(gateway: str, enforcing: str, value: str) -> None:
    """A header that is not one clear true or false leaves enforcement on."""
    header = ("x-usagepanda-enforce-user-ids", value.encode().decode("latin-1"))
    assert (await post(gateway, enforcing, CHAT, header)).status == 422


async def test_two_headers_that_disagree(gateway: str, enforcing: str, off: str) -> None:
    """The strictest of several headers wins."""
    headers = [("x-usagepanda-enforce-user-ids", value) for value in ("false", "true")]
    for key in (enforcing, off):
        assert (await post(gateway, key, CHAT, *headers)).status == 422
        assert (await post(gateway, key, CHAT, *reversed(headers))).status == 422


async def test_underscore_twins_do_not_count(gateway: str, enforcing: str) -> None:
    """x_usagepanda_enforce_user_ids is not the header, and does not switch enforcement off."""
    for name in ("x_usagepanda_enforce_user_ids", "x-usagepanda_enforce-user-ids"):
        assert (await post(gateway, enforcing, CHAT, (name, "false"))).status == 422


async def test_a_request_without_key(gateway: str, upstream: Demo) -> None:
    """A request without a key is denied with 403, whatever its path, with how to send a key."""
    for method, target in [("POST", "/v1/chat/completions"), ("GET", "/v1/models")]:
        response = await ask(gateway, method, target, [("x_usagepanda_api_key", "up-1")])
        error = json.loads(response.body)["error"]
        assert (response.status, error["type"]) == (403, "access_denied")
        assert "x-usagepanda-api-key" in error["message"]
    assert not upstream.app.record


async def test_malformed_and_unknown_keys(gateway: str, upstream: Demo) -> None:
    """Malformed and unknown keys get one denial, so that no client learns which keys exist."""
    keys = ["", "nonsense", "up-" + "0" * 48, "up-é".encode().decode("latin-1")]
    denials = [await post(gateway, key, CHAT_WITH_USER) for key in keys]
    assert {denial.status for denial in denials} == {403}
    assert len({denial.body for denial in denials}) == 1
    assert not upstream.app.record


async def test_two_keys(gateway: str, enforcing: str, off: str) -> None:
    """Two keys that differ are denied; the same key twice counts as one."""
    same = await post(gateway, enforcing, CHAT_WITH_USER, ("X-UsagePanda-API-Key", enforcing))
    assert same.status == 200
    other = await post(gateway, enforcing, CHAT_WITH_USER, ("X-UsagePanda-API-Key", off))
    assert other.status == 403


async def test_the_operators_key(serving: Serving, upstream: Demo, enforcing: str) -> None:
    """The operator's key is used if a request names no key, and never if it names a wrong one."""
    async with serving(upstream.url, api_key=enforcing) as server:
        assert (await ask(server.url, "GET", "/v1/models")).status == 200
        no_user = await ask(server.url, "POST", "/v1/chat/completions", (), CHAT)
        assert no_user.body == NO_USER
        assert (await post(server.url, "up-wrong", CHAT_WITH_USER)).status == 403
        assert (await post(server.url, "", CHAT_WITH_USER)).status == 403


async def test_preflight(gateway: str, upstream: Demo) -> None:
    """OPTIONS is answered before any authentication, and lets browsers send Authorization."""
    for target in ("/v1/chat/completions", "/anything", "*"):
        response = await ask(gateway, "OPTIONS", target)
        assert response.status == 200
        assert response.headers[:4] == [
            ("Access-Control-Allow-Headers", "*, Authorization"),
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "OPTIONS,POST,GET"),
            ("Content-Type", "application/json"),
        ]
    assert not upstream.app.record


async def test_websockets(gateway: str, upstream: Demo, off: str) -> None:
    """An upgrade to WebSocket is denied with 426 and a reason, however it is requested."""
    for connection in ([], [("Connection", "keep-alive, Upgrade")]):
        headers = [("Upgrade", "WebSocket"), ("x-usagepanda-api-key", off), *connection]
        reader, writer = await connect(gateway)
        writer.write(request("GET", "/v1/realtime?model=m", headers))
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"}}")
        writer.close()
        denial = parse(head)
        assert denial.status == 426
        # RFC 9110: a 426 names the protocol that the server speaks; behind the contract's headers.
        names = [name for name, _ in denial.headers[:6]]
        assert names[4:] == ["Upgrade", "Connection"]
        assert denial.all("upgrade") == ["HTTP/1.1"]
        assert "Upgrade" in denial.all("connection")
        assert "WebSocket" in json.loads(body)["error"]["message"]
    assert not upstream.app.record


async def test_many_at_once(gateway: str, upstream: Demo, enforcing: str) -> None:
    """Requests that share a call to policyd each get their own answer."""
    bodies = [CHAT, CHAT_WITH_USER] * 40
    responses = await asyncio.gather(*(post(gateway, enforcing, body) for body in bodies))
    assert [response.status for response in responses] == [422, 200] * 40
    assert len(upstream.app.record) == 40
