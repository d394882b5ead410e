"""The demo upstream answers the official client as OpenAI does, and records its requests."""

import asyncio
import gzip
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
import uvicorn

from policyd.demo.upstream import DemoUpstream

HELLO: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there"}]
PNG = "iVBORw0KGgo"


@asynccontextmanager
async def serving(app: DemoUpstream) -> AsyncIterator[str]:
    """Run the app under uvicorn on a free port, and give the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


@pytest.fixture
def app() -> DemoUpstream:
    return DemoUpstream(record=10, pause_slow=0.2)


@pytest.fixture
async def url(app: DemoUpstream) -> AsyncIterator[str]:
    async with serving(app) as address:
        yield address


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="any", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


async def seen_soon(app: DemoUpstream, disconnects: int) -> bool:
    for _ in range(200):
        if app.disconnects == disconnects:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_chat(client: openai.AsyncOpenAI) -> None:
    """A chat completion greets, counts the words, and carries OpenAI's headers."""
    raw = await client.chat.completions.with_raw_response.create(model="m", messages=HELLO)
    answer = raw.parse()
    assert answer.id.startswith("chatcmpl-")
    assert "last message arrived with 2 words" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id is not None
    assert {"openai-processing-ms", "openai-organization"} <= set(raw.headers)
    assert raw.headers["content-type"] == "application/json"


async def test_sync_client(url: str) -> None:
    """The synchronous client is answered too, streams included."""

    def ask() -> str:
        with openai.OpenAI(api_key="any", base_url=url) as client:
            stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert "2 words" in await asyncio.to_thread(ask)


@pytest.mark.parametrize("base", ["", "/v1", "/openai/v1", "/openai/deployments/dep"])
async def test_spellings(url: str, base: str) -> None:
    """Every spelling of the address reaches the same operation."""
    async with openai.AsyncOpenAI(api_key="any", base_url=url + base) as client:
        assert (await client.chat.completions.create(model="m", messages=HELLO)).model == "m"


async def test_azure_deployment_is_the_model(url: str) -> None:
    """On Azure a deployment in the path may stand for the model in the body."""
    target = f"{url}/openai/deployments/my-gpt/completions?api-version=2024-10-21"
    async with aiohttp.ClientSession() as http, http.post(target, json={"prompt": "x"}) as answer:
        assert (await answer.json())["model"] == "my-gpt"


async def test_first_chunk_leaves_before_the_last(
    app: DemoUpstream, client: openai.AsyncOpenAI
) -> None:
    """With a gate, the first chunk is read while the second may not even be sent."""
    app.gate = asyncio.Semaphore(0)
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
    first = await anext(stream)
    assert first.choices[0].delta.role == "assistant"
    second = asyncio.ensure_future(anext(stream))
    assert not (await asyncio.wait([second], timeout=0.1))[0]
    app.gate.release()
    assert (await second).choices[0].delta.content == "Hello! "
    for _ in range(50):
        app.gate.release()
    assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"
    assert app.disconnects == 0


async def test_stream_ends_with_usage_if_asked(client: openai.AsyncOpenAI) -> None:
    """With `include_usage` one chunk more, without choices, carries the usage."""
    stream = await client.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert last.usage is not None
    assert last.choices == []
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


async def test_completions(client: openai.AsyncOpenAI) -> None:
    """Completions answer each prompt, and say the same whole and streamed."""
    prompts = ["one two", "three"]
    whole = await client.completions.create(model="m", prompt=prompts)
    told = ["", ""]
    async for chunk in await client.completions.create(model="m", prompt=prompts, stream=True):
        told[chunk.choices[0].index] += chunk.choices[0].text
    assert told == [choice.text for choice in whole.choices]


async def test_embeddings(client: openai.AsyncOpenAI) -> None:
    """Floats and base64, which the client requests by itself, are the same numbers."""
    plain = await client.embeddings.create(model="m", input=["a", "b"], encoding_format="float")
    packed = await client.embeddings.create(model="m", input=["a", "b"])
    for one, other in zip(plain.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
    assert plain.data[0].embedding != plain.data[1].embedding


# OpenAI is about to retire variations; docs/contract.md, section 2, has them in scope.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_images(client: openai.AsyncOpenAI) -> None:
    """Images are made, and edited and varied from a multipart form, as base64 of a PNG."""
    made = await client.images.generate(prompt="a cat", n=2)
    edited = await client.images.edit(image=io.BytesIO(b"image"), prompt="a hat")
    varied = await client.images.create_variation(image=io.BytesIO(b"image"))
    pictures = [*(made.data or []), *(edited.data or []), *(varied.data or [])]
    assert len(pictures) == 4
    assert all((picture.b64_json or "").startswith(PNG) for picture in pictures)


async def test_responses(client: openai.AsyncOpenAI) -> None:
    """The client's own accumulator accepts the events of a streamed response, in their order."""
    whole = await client.responses.create(model="m", input="one two", user="u")
    assert "2 words" in whole.output_text
    assert whole.user == "u"
    async with client.responses.stream(model="m", input=HELLO) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == whole.output_text
    assert final.usage is not None


async def test_lesser_operations(client: openai.AsyncOpenAI) -> None:
    """Models are listed, shown by ID or unknown; a moderation flags nothing."""
    names = [model.id async for model in client.models.list()]
    assert (await client.models.retrieve(names[0])).id == names[0]
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.models.retrieve("unknown")
    verdict = await client.moderations.create(input=["a", "b"])
    assert [result.flagged for result in verdict.results] == [False, False]


async def test_upload_is_counted_and_not_kept(
    app: DemoUpstream, client: openai.AsyncOpenAI
) -> None:
    """The upstream keeps only the beginning of an upload, and counts the whole."""
    size = 3_000_000
    kept = await client.files.create(file=("a.jsonl", b"x" * size), purpose="batch")
    assert (kept.filename, kept.purpose) == ("a.jsonl", "batch")
    received = app.record[-1]
    assert received.complete
    assert received.length == kept.bytes > size
    assert len(received.body) == 64 * 1024


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/nowhere", b"{}", 404, None),
        ("/v1/models", b"{}", 405, None),
        ("/v1/chat/completions", b"{", 400, None),
        ("/v1/chat/completions", b"\xff", 400, None),
        ("/v1/chat/completions", b"[" * 100_000, 400, None),
        ("/v1/chat/completions", b"[]", 400, None),
        ("/v1/chat/completions", b'{"messages": []}', 400, "model"),
        ("/v1/chat/completions", b'{"model": "m"}', 400, "messages"),
        ("/v1/chat/completions", b'{"model": "m", "messages": "x"}', 400, "messages"),
        ("/v1/images/generations", b'{"prompt": "x", "n": 0}', 400, "n"),
        ("/v1/responses", b'{"model": "demo-error-500"}', 500, None),
    ],
)
async def test_errors_have_the_shape_of_openai(
    url: str, path: str, body: bytes, status: int, param: str | None
) -> None:
    """A bad request gets a status and an error object that names the parameter."""
    async with aiohttp.ClientSession() as http, http.post(url + path, data=body) as answer:
        assert answer.status == status
        error = (await answer.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param


async def test_rate_limit(client: openai.AsyncOpenAI) -> None:
    """The model demo-error-429 is always over its limit, and sends Retry-After."""
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="demo-error-429", messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.code == "rate_limit_exceeded"


async def test_slow_model(client: openai.AsyncOpenAI, app: DemoUpstream) -> None:
    """The model demo-slow makes the client wait for the headers; clients that leave are counted."""
    asked = asyncio.get_running_loop().time()
    await client.chat.completions.create(model="demo-slow", messages=HELLO)
    assert asyncio.get_running_loop().time() - asked >= app.pause_slow
    with pytest.raises(openai.APITimeoutError):
        await client.responses.create(model="demo-slow", input="x", timeout=0.05)
    assert await seen_soon(app, disconnects=1)


async def test_broken_stream(client: openai.AsyncOpenAI, app: DemoUpstream) -> None:
    """The model demo-broken-stream gives three chunks and then a broken connection."""
    stream = await client.chat.completions.create(
        model="demo-broken-stream", messages=HELLO, stream=True
    )
    chunks = [await anext(stream) for _ in range(3)]
    assert chunks[-1].choices[0].finish_reason is None
    with pytest.raises(openai.APIConnectionError):
        await anext(stream)
    assert app.disconnects == 0


async def test_leaving_a_stream_is_counted(client: openai.AsyncOpenAI, app: DemoUpstream) -> None:
    """The upstream notices a client that leaves within a stream while no chunk is sent."""
    app.gate = asyncio.Semaphore(0)
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
    await anext(stream)
    await stream.response.aclose()
    assert await seen_soon(app, disconnects=1)


async def test_record(url: str, app: DemoUpstream) -> None:
    """The record holds the whole request: path and query, headers in order, and the body."""
    body = gzip.compress(json.dumps({"model": "m", "input": "x"}).encode())
    headers = [("X-B", "1"), ("X-A", "2"), ("X-B", "3"), ("Content-Encoding", "gzip")]
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/%65mbeddings?a=%20b", data=body, headers=headers) as answer,
    ):
        assert answer.status == 200
    received = app.record[-1]
    assert received.method == "POST"
    assert received.target.endswith(b"mbeddings?a=%20b")
    assert [pair for pair in received.headers if pair[0].startswith(b"x-")] == [
        (b"x-b", b"1"),
        (b"x-a", b"2"),
        (b"x-b", b"3"),
    ]
    assert received.body == body
    assert received.complete


async def test_record_is_off_by_default() -> None:
    """An app made without arguments keeps no record, and its streams still flow with a pause."""
    app = DemoUpstream(pause=0.001)
    async with (
        serving(app) as url,
        openai.AsyncOpenAI(api_key="any", base_url=url) as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        assert len([chunk async for chunk in stream]) > 5
    assert len(app.record) == 0
