"""The requests that a proxy sends to the HTTP check, for tests."""

import json

from tests.support.raw_http import Response, ask

PATH = "/v1/chat/completions"
Pairs = list[tuple[str, str]]


def about(method: str = "POST", target: str = PATH) -> Pairs:
    """The headers that name the request of a check."""
    return [("X-Forwarded-Method", method), ("X-Forwarded-Uri", target)]


async def check(url: str, key: str, body: bytes, *headers: tuple[str, str]) -> Response:
    """Send a check of a chat completion."""
    pairs = [("x-usagepanda-api-key", key), *about(), *headers]
    return await ask(url, "POST", "/v1/check", pairs, body)


async def evaluate(url: str, body: object, *headers: tuple[str, str]) -> Response:
    """Send a descriptor."""
    pairs = [("Content-Type", "application/json"), *headers]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(url, "POST", "/v1/evaluate", pairs, data)
