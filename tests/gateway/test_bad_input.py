"""No malformed request slips past the policy: none of these reaches the upstream."""

import asyncio
import gzip
import json

import brotli
import pytest

from tests.gateway.conftest import IN_SESSION, Serving
from tests.support.codings import COMPRESS
from tests.support.raw_http import CHAT, CHAT_WITH_USER, Demo, ask, exchange, parse, post

pytestmark = IN_SESSION

USER = '"user":"u-1"'
FORM = "multipart/form-data"


def chat(more: str) -> bytes:
    """A chat request with more members."""
    return f'{{"model":"m","messages":[],{more}}}'.encode()


BODIES = {
    "empty": (b"", 400),
    "not JSON": (b"user=u-1", 400),
    "an array": (b'[{"user":"u-1"}]', 400),
    "a string": (b'"user"', 400),
    "null": (b"null", 400),
    "cut short": (CHAT_WITH_USER[:-1], 400),
    "two objects": (CHAT_WITH_USER + CHAT, 400),
    "nested 2,000 deep": (chat(f'{USER},"a":{"[" * 2000}{"]" * 2000}'), 400),
    "invalid UTF-8": (b'{"user":"u-1","a":"\xff"}', 400),
    "a byte order mark": (b"\xef\xbb\xbf" + CHAT_WITH_USER, 400),
    "UTF-16": (CHAT_WITH_USER.decode().encode("utf-16"), 400),
    "NaN": (chat(f'{USER},"temperature":NaN'), 400),
    "user twice, the last one blank": (chat(f'{USER},"user":" "'), 422),
    "user twice, the first one null": (chat(f'"user":null,{USER}'), 422),
    "user twice, one spelled in escapes": (chat(f'{USER},"\\u0075ser":""'), 422),
    "user in a message only": (b'{"model":"m","messages":[{"role":"user","user":"u-1"}]}', 422),
    "user in metadata only": (chat('"metadata":{"user":"u-1"}'), 422),
    "User": (chat('"User":"u-1"'), 422),
    "null user": (chat('"user":null'), 422),
    "empty user": (chat('"user":""'), 422),
    "blank user": (chat('"user":"\\u0000 \\u200b"'), 422),
    "an int beyond 64 bits": (chat('"user":99999999999999999999999999'), 422),
    "an array of users": (chat('"user":["u-1"]'), 422),
    "a safety_identifier that is too long": (chat(f'"safety_identifier":"{"u" * 129}"'), 422),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
async def test_bodies(
    gateway: str, upstream: Demo, enforcing: str, body: bytes, status: int
) -> None:
    """A body that does not clearly carry a user is denied, in OpenAI's shape, with the reason."""
    response = await post(gateway, enforcing, body)
    assert response.status == status
    error = json.loads(response.body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"].startswith("Usage Panda: ")
    assert error["type"] == "invalid_request"
    assert not upstream.app.record


async def test_big_numbers_do_no_harm(gateway: str, upstream: Demo, enforcing: str) -> None:
    """An integer beyond 64 bits elsewhere in the body is the upstream's matter."""
    response = await post(gateway, enforcing, chat(f'{USER},"seed":99999999999999999999999999'))
    assert response.status == 200
    assert len(upstream.app.record) == 1


@pytest.mark.parametrize("name", ["Content-Type", "Content-Encoding", "x-usagepanda-trace-id"])
@pytest.mark.parametrize("word", ["charset", "charset=", ";a=", 'a="', "gzip,", "\t"])
async def test_a_long_header_holds_up_no_other(
    gateway: str, upstream: Demo, enforcing: str, name: str, word: str
) -> None:
    """A quarter of a million bytes in a header are rejected long before other requests time out."""
    long = (name, "a" + word * (250_000 // len(word)) + "a")
    key = ("x-usagepanda-api-key", enforcing)
    hostile = ask(gateway, "POST", "/v1/chat/completions", [key, long], CHAT_WITH_USER)
    async with asyncio.timeout(60):
        refused, answered = await asyncio.gather(hostile, post(gateway, enforcing, CHAT_WITH_USER))
    assert refused.status in (400, 415, 431)
    assert answered.status == 200
    assert len(upstream.app.record) == 1


@pytest.mark.parametrize("coding", COMPRESS)
async def test_compressed_bodies(gateway: str, upstream: Demo, enforcing: str, coding: str) -> None:
    """Compressed bodies are read, and forwarded compressed, unchanged."""
    header = ("Content-Encoding", coding)
    assert (await post(gateway, enforcing, COMPRESS[coding](CHAT), header)).status == 422
    assert not upstream.app.record
    body = COMPRESS[coding](CHAT_WITH_USER)
    await post(gateway, enforcing, body, header)
    assert [bytes(received.body) for received in upstream.app.record] == [body]
    assert upstream.app.record[0].header(b"content-encoding") == coding


@pytest.mark.parametrize("coding", COMPRESS)
async def test_compressed_bodies_that_are_cut_short(
    gateway: str, upstream: Demo, enforcing: str, coding: str
) -> None:
    """A compressed body that is cut short is denied with 400."""
    body = COMPRESS[coding](CHAT_WITH_USER)[:-3]
    assert (await post(gateway, enforcing, body, ("Content-Encoding", coding))).status == 400
    assert not upstream.app.record


async def test_content_encodings(gateway: str, upstream: Demo, enforcing: str) -> None:
    """An unknown coding is denied with 415.

    Several codings apply in their order, repeated headers too.
    """
    unknown = await post(gateway, enforcing, CHAT_WITH_USER, ("Content-Encoding", "compress"))
    assert unknown.status == 415
    body = brotli.compress(gzip.compress(CHAT))
    headers = [("Content-Encoding", "gzip"), ("content-encoding", "br")]
    assert (await post(gateway, enforcing, body, *headers)).status == 422
    assert (await post(gateway, enforcing, body, *reversed(headers))).status == 400
    assert not upstream.app.record


@pytest.mark.parametrize("coding", COMPRESS)
async def test_bombs(serving: Serving, upstream: Demo, enforcing: str, coding: str) -> None:
    """A body that decompresses beyond the bound is denied with 413."""
    bomb = COMPRESS[coding](b'{"user":"u-1","a":"' + b" " * 2**22 + b'"}')
    async with serving(upstream.url, max_body=2**20) as server:
        response = await post(server.url, enforcing, bomb, ("Content-Encoding", coding))
    assert response.status == 413
    assert not upstream.app.record


@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
async def test_a_body_over_the_bound(
    serving: Serving, upstream: Demo, enforcing: str, off: str, framing: str
) -> None:
    """A body over the bound is denied with 413 where the key enforces, and otherwise forwarded
    whole; one at the bound is read.
    """
    body = chat(f'{USER},"a":"{"x" * 100_000}"')
    for limit, key, status in [
        (len(body) - 1, enforcing, 413),
        (len(body) - 1, off, 200),
        (1, off, 200),
        (len(body), enforcing, 200),
    ]:
        upstream.app.record.clear()
        async with serving(upstream.url, max_body=limit) as server:
            response = await _post_framed(server.url, key, body, framing)
        assert response == status
        passed = [bytes(received.body) for received in upstream.app.record]
        assert passed == ([body] if status == 200 else [])


async def _post_framed(url: str, key: str, body: bytes, framing: str) -> int:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-usagepanda-api-key: {key}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n"
    if framing == "Content-Length":
        data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    else:
        pieces = [body[at : at + 30_000] for at in range(0, len(body), 30_000)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        data = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
    return parse(await exchange(url, data)).status


def form(*fields: str, boundary: str = "B") -> bytes:
    """A form of these parts, each of which begins with its headers."""
    parts = "".join(f"--{boundary}\r\n{part}\r\n" for part in fields)
    return f"{parts}--{boundary}--\r\n".encode()


def field(name: str, value: str) -> str:
    """A form field."""
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'


FILE = 'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nPNG'
AS_FILE = 'Content-Disposition: form-data; name="user"; filename="user"\r\n\r\nu-1'
GOOD = form(FILE, field("user", "u-1"))
FORMS = {
    "no user": (form(FILE), f"{FORM}; boundary=B", 422),
    "a blank user": (form(FILE, field("user", " ")), f"{FORM}; boundary=B", 422),
    "a file for a user": (form(FILE, AS_FILE), f"{FORM}; boundary=B", 422),
    "repeated, one blank": (
        form(field("user", "u"), field("user", "")),
        f"{FORM}; boundary=B",
        422,
    ),
    "no boundary": (GOOD, FORM, 400),
    "another boundary": (GOOD, f"{FORM}; boundary=C", 400),
    "no end": (GOOD[:-6], f"{FORM}; boundary=B", 400),
    "something after the end": (GOOD + GOOD, f"{FORM}; boundary=B", 400),
    "a form that says it is JSON": (GOOD, "application/json", 400),
    "JSON that says it is a form": (b'{"user":"u-1"}', f"{FORM}; boundary=B", 400),
}


@pytest.mark.parametrize("endpoint", ["edits", "variations"])
@pytest.mark.parametrize(("body", "content_type", "status"), FORMS.values(), ids=FORMS)
async def test_forms(
    gateway: str,
    upstream: Demo,
    enforcing: str,
    endpoint: str,
    body: bytes,
    content_type: str,
    status: int,
) -> None:
    """A form that does not clearly carry a user is denied."""
    headers = [("x-usagepanda-api-key", enforcing), ("Content-Type", content_type)]
    response = await ask(gateway, "POST", f"/v1/images/{endpoint}", headers, body)
    assert response.status == status
    assert not upstream.app.record


async def test_a_form_with_user(gateway: str, upstream: Demo, enforcing: str) -> None:
    """A form with a user is forwarded unchanged, with its Content-Type."""
    content_type = f'{FORM}; boundary="B"'
    headers = [("x-usagepanda-api-key", enforcing), ("Content-Type", content_type)]
    assert (await ask(gateway, "POST", "/v1/images/edits", headers, GOOD)).status == 200
    assert bytes(upstream.app.record[0].body) == GOOD
    assert upstream.app.record[0].header(b"content-type") == content_type


async def test_two_content_types(gateway: str, upstream: Demo, enforcing: str) -> None:
    """The upstream may follow either of two Content-Types that differ, so neither is believed."""
    for target, first, second, body in [
        ("/v1/images/edits", f"{FORM}; boundary=B", f"{FORM}; boundary=C", GOOD),
        ("/v1/images/edits", f"{FORM}; boundary=B", "application/json", GOOD),
        ("/v1/chat/completions", "application/json", "text/plain", CHAT_WITH_USER),
    ]:
        key = ("x-usagepanda-api-key", enforcing)
        headers = [key, ("Content-Type", first), ("content-type", second)]
        assert (await ask(gateway, "POST", target, headers, body)).status == 400
        twice = [key, ("Content-Type", first), ("Content-Type", first)]
        assert (await ask(gateway, "POST", target, twice, body)).status == 200
    assert len(upstream.app.record) == 3


async def test_an_over_long_trace_id(gateway: str, upstream: Demo, enforcing: str) -> None:
    """A long trace ID changes no decision, unless the headers exceed their bound and get 431."""
    for length, statuses in [(100, (422, 200)), (9000, (431, 431))]:
        header = ("x-usagepanda-trace-id", "t" * length)
        responses = [
            await post(gateway, enforcing, body, header) for body in (CHAT, CHAT_WITH_USER)
        ]
        assert tuple(response.status for response in responses) == statuses
    assert len(upstream.app.record) == 1
