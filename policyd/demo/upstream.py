"""A small OpenAI-compatible upstream, so that demo, tests and benchmarks need no provider's key.

It is a raw ASGI app that speaks the protocol as the official clients expect it. There is no model
behind it: replies.py makes the answers, and streams.py streams them word by word. Token counts are
word counts. It does not check `Authorization`. Any model name is accepted; these four cause
trouble:

    demo-error-429      429, `Retry-After: 1` and a rate limit error
    demo-error-500      500 and a server error
    demo-slow           waits `pause_slow` seconds before its headers
    demo-broken-stream  with `stream: true`, breaks off after three chunks, the stream unfinished

Run it with `uvicorn --factory policyd.demo.upstream:DemoUpstream`.
"""

import asyncio
import itertools
import math
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from policyd.asgi.body import Receive
from policyd.demo import replies, streams
from policyd.demo.received import Received, read_json
from policyd.demo.replies import ApiError, Ask, Json

Message = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]
Work = Coroutine[Any, Any, None]

_PREFIX = re.compile(r"(?:/openai/deployments/([^/]+)|/openai/v1|/openai|/v1)(?=/)")
_FORM_HEAD = 64 * 1024
_CHUNKS_BEFORE_BREAK = 3


@dataclass(frozen=True, slots=True)
class Route:
    """One operation: the function that answers it, and what its body must have."""

    answer: Callable[[Ask], Json]
    events: Callable[[Json, bool], Iterator[bytes]] | None = None
    needs: Mapping[str, tuple[type, ...]] = field(default_factory=dict)
    model: str | None = None  # the default model; None: the request must name one
    reads_json: bool = True  # other bodies are counted, not read


_INPUT = {"input": (str, list)}
_MESSAGES = {"messages": (list,)}

ROUTES: Mapping[tuple[str, str], Route] = {
    ("POST", "/chat/completions"): Route(replies.chat, streams.chat_events, _MESSAGES),
    ("POST", "/completions"): Route(replies.completion, streams.completion_events),
    ("POST", "/responses"): Route(replies.response, streams.response_events),
    ("POST", "/embeddings"): Route(replies.embeddings, needs=_INPUT),
    ("POST", "/moderations"): Route(
        replies.moderation, needs=_INPUT, model="omni-moderation-latest"
    ),
    ("POST", "/images/generations"): Route(replies.images, needs={"prompt": (str,)}, model=""),
    ("POST", "/images/edits"): Route(replies.images, model="", reads_json=False),
    ("POST", "/images/variations"): Route(replies.images, model="", reads_json=False),
    ("POST", "/files"): Route(replies.file_upload, model="", reads_json=False),
    ("GET", "/models"): Route(replies.model_list, model="", reads_json=False),
    ("GET", "/models/ID"): Route(replies.model, model="", reads_json=False),
}


class DemoUpstream:
    """The ASGI app. Every attribute may be changed while it runs; instances share nothing.

    record: the last requests, oldest first, up to the number given to the constructor.
    pause: seconds before each chunk of a stream but the first.
    pause_slow: seconds that the model `demo-slow` waits before its headers.
    gate: if set, each chunk of a stream but the first takes a permit; `[DONE]` is a chunk too.
        From another thread, release it through the server's loop (`call_soon_threadsafe`).
    disconnects: number of clients that left during an upload, a stream or the wait of `demo-slow`.
    max_json: bytes of a JSON body that are read and kept; a longer body gets 413. Of other bodies
        the first 64 KiB are kept.
    """

    def __init__(
        self,
        *,
        record: int = 0,
        pause: float = 0.0,
        pause_slow: float = 5.0,
        gate: asyncio.Semaphore | None = None,
        max_json: int = 16 * 1024 * 1024,
    ) -> None:
        self.record: deque[Received] = deque(maxlen=record)
        self.pause = pause
        self.pause_slow = pause_slow
        self.gate = gate
        self.max_json = max_json
        self.disconnects = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._serve(scope, receive, _Out(send))
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _serve(self, scope: Message, receive: Receive, out: "_Out") -> None:
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        received = Received(scope["method"], scope["raw_path"] + query, list(scope["headers"]))
        self.record.append(received)
        path, deployment, item = _split(scope["path"])
        route = ROUTES.get((received.method, path))
        keep = self.max_json if route and route.reads_json else _FORM_HEAD
        await received.fill(receive, keep)
        if not received.complete:
            self.disconnects += 1
            return
        try:
            if route is None:
                raise _no_route(received.method, path, scope["path"])
            ask = self._ask(received, route, deployment, item)
            await self._answer(route, ask, receive, out)
        except ApiError as error:
            await out.whole(error.body, error.status, error.headers)

    def _ask(self, received: Received, route: Route, deployment: str | None, item: str) -> Ask:
        fields = read_json(received, self.max_json) if route.reads_json else {}
        model = fields.get("model") or deployment or route.model
        if not isinstance(model, str):
            raise ApiError(400, "You must provide a model parameter.", param="model")
        for name, types in route.needs.items():
            _check(fields, name, types)
        replies.error_on_demand(model)
        return Ask(model, fields, item, bytes(received.body[:_FORM_HEAD]), received.length)

    async def _answer(self, route: Route, ask: Ask, receive: Receive, out: "_Out") -> None:
        answer = route.answer(ask)
        if route.events is not None and ask.fields.get("stream") is True:
            events = route.events(answer, _wants_usage(ask.fields))
            await self._while_connected(receive, self._stream(events, ask.model, out))
        elif ask.model == "demo-slow":
            await self._while_connected(receive, self._slow(answer, out))
        else:
            await out.whole(answer)

    async def _slow(self, answer: Json, out: "_Out") -> None:
        await asyncio.sleep(self.pause_slow)
        await out.whole(answer)

    async def _stream(self, events: Iterator[bytes], model: str, out: "_Out") -> None:
        if model == "demo-slow":
            await asyncio.sleep(self.pause_slow)
        breaks = model == "demo-broken-stream"
        chunks = itertools.islice(events, _CHUNKS_BEFORE_BREAK) if breaks else events
        await out.start(200, "text/event-stream; charset=utf-8", {"cache-control": "no-cache"})
        for number, chunk in enumerate(chunks):
            if number:
                await self._step()
            await out.body(chunk, more=True)
        if not breaks:  # servers drop the connection of an app that returns before its body's end
            await out.body(b"", more=False)

    async def _step(self) -> None:
        if self.gate is not None:
            await self.gate.acquire()
        # Even a pause of 0 is a turn of the event loop, so that each chunk is sent by itself.
        await asyncio.sleep(self.pause)

    async def _while_connected(self, receive: Receive, work: Work) -> None:
        # The body is complete, so that `receive` can only report that the client has left.
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(receive())
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.done():  # asked first: a finished response counts as a disconnect too
                working.result()
            else:
                self.disconnects += 1
        finally:
            working.cancel()
            leaving.cancel()


class _Out:
    """Sends answers, with OpenAI's usual headers."""

    def __init__(self, send: Send) -> None:
        self._send, self._began = send, time.perf_counter()

    async def whole(
        self, body: Json, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        payload = msgspec.json.encode(body)
        length = {"content-length": str(len(payload))}
        await self.start(status, "application/json", {**length, **(headers or {})})
        await self.body(payload, more=False)

    async def start(self, status: int, content_type: str, more: Mapping[str, str]) -> None:
        headers = {
            "content-type": content_type,
            "openai-organization": "policyd-demo",
            "openai-processing-ms": str(math.ceil((time.perf_counter() - self._began) * 1000)),
            "openai-version": "2020-10-01",
            "x-request-id": f"req_{secrets.token_hex(16)}",
            **more,
        }
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def body(self, chunk: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})


def _split(path: str) -> tuple[str, str | None, str]:
    """Split a path into its entry in ROUTES, an Azure deployment's name, and a model's ID."""
    prefix = _PREFIX.match(path)
    rest, deployment = (path[prefix.end() :], prefix[1]) if prefix else (path, None)
    collection, _, item = rest.rpartition("/")
    is_model = collection == "/models" and item
    return ("/models/ID", deployment, item) if is_model else (rest, deployment, "")


def _no_route(method: str, path: str, full_path: str) -> ApiError:
    allowed = ", ".join(name for name, known in ROUTES if known == path)
    if not allowed:
        return ApiError(404, f"Unknown request URL: {method} {full_path}.", code="unknown_url")
    message = f"Not allowed to {method} on {full_path}; allowed: {allowed}."
    return ApiError(405, message, code="method_not_supported", headers={"allow": allowed})


def _check(fields: Json, name: str, types: tuple[type, ...]) -> None:
    if name not in fields:
        message = f"Missing required parameter: '{name}'."
        raise ApiError(400, message, param=name, code="missing_required_parameter")
    if not isinstance(fields[name], types):
        raise ApiError(400, f"Invalid type for '{name}'.", param=name, code="invalid_type")


def _wants_usage(fields: Json) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


async def _lifespan(receive: Receive, send: Send) -> None:
    kind = ""
    while kind != "lifespan.shutdown":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
