"""The requests that the benchmarks send, and the descriptor that the gateway makes of each."""

import json

from gateway.describe import http_request
from gateway.headers import read_request
from policyd.descriptor.body import read_body
from policyd.descriptor.describe import describe
from policyd.descriptor.headers import KEY_HEADER
from policyd.engine.endpoints import ENDPOINTS
from policyd.v1.policy_pb2 import EvaluateRequest

PATH = "/v1/chat/completions"
ENDPOINT = ENDPOINTS["/chat/completions"]
TEXT = "Tell me in a few words how the tide follows the moon, and why it is late. "


def headers(key: str) -> list[tuple[str, str]]:
    """The headers that OpenAI's client sends, without those of the connection."""
    return [
        ("Authorization", "Bearer sk-benchmark"),
        ("Content-Type", "application/json"),
        ("User-Agent", "OpenAI/Python 3.54.0"),
        ("X-Usagepanda-Api-Key", key),
        ("X-Usagepanda-Trace-Id", "benchmark-1"),
    ]


def body(size: int = 1024, user: str | None = "user-1") -> bytes:
    """A chat request of about `size` bytes, with `user` last where it has one."""
    messages = [{"role": "system", "content": "You are brief."}]
    for number in range(max(1, size // (len(TEXT) * 4))):
        role = "assistant" if number % 2 else "user"
        messages.append({"role": role, "content": (TEXT * 4)[: size // 2]})
    chat: dict[str, object] = {"model": "gpt-4o-mini", "messages": messages, "temperature": 0.2}
    return json.dumps(chat | ({"user": user} if user else {})).encode()


def asked(key: str, user: str | None = "user-1") -> EvaluateRequest:
    """The descriptor of the request, as the gateway makes it."""
    raw = [(name.encode(), value.encode()) for name, value in headers(key)]
    attributes = read_body(body(user=user), "application/json", "", ENDPOINT)
    scope = {"method": "POST", "client": ("127.0.0.1", 50000), "query_string": b""}
    message = describe(http_request(scope, PATH, read_request(raw), ""), attributes)
    assert any(header.name == KEY_HEADER for header in message.headers)
    return message
