"""The demo upstream's answers: bodies in the shapes of OpenAI's API.

They come from no model: token counts are word counts, embeddings are hashes of their text, and
every image is one pixel. A request that cannot be answered raises an `ApiError`.
"""

import base64
import hashlib
import re
import secrets
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

Json = dict[str, Any]

MODELS = (
    "gpt-4o-mini",
    "gpt-3.5-turbo",
    "gpt-3.5-turbo-instruct",
    "text-embedding-3-small",
    "dall-e-2",
    "omni-moderation-latest",
    "demo-error-429",
    "demo-error-500",
    "demo-slow",
    "demo-broken-stream",
)
_MODELS_SINCE = 1_700_000_000
_DIMENSIONS, _MOST_DIMENSIONS, _MOST_IMAGES = 8, 3072, 10
_PIXEL = (  # a PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_FILE_NAME = re.compile(rb'filename="([^"\r\n]*+)"')
_PURPOSE = re.compile(rb'\r\n[^\r\n]*? name="purpose"\r\n\r\n([^\r\n]*+)\r\n')
_HARMS = (
    *("harassment", "hate", "illicit", "self-harm", "sexual", "violence"),
    *("harassment/threatening", "hate/threatening", "illicit/violent", "violence/graphic"),
    *("self-harm/instructions", "self-harm/intent", "sexual/minors"),
)


class ApiError(Exception):
    """An error in OpenAI's shape: its status, its body and its further headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        error = {"message": message, "type": type, "param": param, "code": code}
        self.body: Json = {"error": error}
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the replies see it."""

    model: str
    fields: Json  # the JSON body; empty for a form, and where there is none
    item: str  # the ID at the end of the path, as in /models/ID
    head: bytes  # how the body begins
    length: int  # bytes of the whole body


def count_words(value: object) -> int:
    """Count the words in all strings within `value`, and each number as one: roughly its tokens."""
    total, todo = 0, [value]
    while todo:
        match todo.pop():
            case str(text):
                total += len(text.split())
            case list(items):
                todo.extend(items)
            case dict(fields):
                todo.extend(fields.values())
            case int():
                total += 1
    return total


def chat(ask: Ask) -> Json:
    """POST /chat/completions."""
    messages = ask.fields["messages"]
    text = _greeting("last message", _last_message(messages))
    message: Json = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = _head(ask, "chatcmpl-", "chat.completion")
    return {**head, "choices": [choice], "usage": _usage(messages, text)}


def completion(ask: Ask) -> Json:
    """POST /completions: one choice for each prompt."""
    prompt = ask.fields.get("prompt", "")
    texts = [_greeting("prompt", text) for text in _each(prompt)]
    choices = [
        {"text": text, "index": index, "logprobs": None, "finish_reason": "stop"}
        for index, text in enumerate(texts)
    ]
    head = _head(ask, "cmpl-", "text_completion")
    return {**head, "choices": choices, "usage": _usage(prompt, texts)}


def response(ask: Ask) -> Json:
    """POST /responses."""
    asked = ask.fields.get("input", "")
    text = _greeting("input", _last_message(asked) if isinstance(asked, list) else asked)
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    message = {"id": _new_id("msg_"), "type": "message", "status": "completed", "role": "assistant"}
    return {
        "id": _new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": ask.model,
        "output": [{**message, "content": [part]}],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": _response_usage(count_words(asked), count_words(text)),
        "user": ask.fields.get("user"),
    }


def embeddings(ask: Ask) -> Json:
    """POST /embeddings: `dimensions` numbers, or 8; equal texts get equal numbers."""
    asked = ask.fields["input"]
    size = _count(ask, "dimensions", _DIMENSIONS, _MOST_DIMENSIONS)
    spelt = _base64_floats if ask.fields.get("encoding_format") == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": spelt(_vector(text, size))}
        for index, text in enumerate(_each(asked))
    ]
    usage = {"prompt_tokens": count_words(asked), "total_tokens": count_words(asked)}
    return {"object": "list", "data": data, "model": ask.model, "usage": usage}


def images(ask: Ask) -> Json:
    """POST /images/generations, /images/edits, /images/variations: always `b64_json`, no stream."""
    number = _count(ask, "n", 1, _MOST_IMAGES)
    return {"created": int(time.time()), "data": [{"b64_json": _PIXEL} for _ in range(number)]}


def moderation(ask: Ask) -> Json:
    """POST /moderations: nothing is ever flagged."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_HARMS, False),
        "category_scores": dict.fromkeys(_HARMS, 0.0),
        "category_applied_input_types": {harm: ["text"] for harm in _HARMS},
    }
    results = [result for _ in _each(ask.fields["input"])]
    return {"id": _new_id("modr-"), "model": ask.model, "results": results}


def file_upload(ask: Ask) -> Json:
    """POST /files: nothing is kept, and `bytes` counts the whole form, boundaries included."""
    return {
        "id": _new_id("file-"),
        "object": "file",
        "bytes": ask.length,
        "created_at": int(time.time()),
        "filename": _in_form(ask, _FILE_NAME, "upload"),
        "purpose": _in_form(ask, _PURPOSE, "user_data"),
        "status": "processed",
    }


def model_list(_ask: Ask) -> Json:
    """GET /models."""
    return {"object": "list", "data": [_model(name) for name in MODELS]}


def model(ask: Ask) -> Json:
    """GET /models/ID."""
    if ask.item not in MODELS:
        message = f"The model '{ask.item}' does not exist"
        raise ApiError(404, message, param="model", code="model_not_found")
    return _model(ask.item)


def error_on_demand(model: str) -> None:
    """Raise the error that a model named `demo-error-…` stands for; do nothing for other names."""
    if model == "demo-error-429":
        raise ApiError(
            429,
            f"Rate limit reached for {model}. Please try again in 1s.",
            type="requests",
            code="rate_limit_exceeded",
            headers={"retry-after": "1", "x-ratelimit-remaining-requests": "0"},
        )
    if model == "demo-error-500":
        raise ApiError(500, f"The server had an error, as {model} always has.", type="server_error")


def _greeting(what: str, asked: object) -> str:
    number = count_words(asked)
    return (
        "Hello! This is policyd's demo upstream, standing in for OpenAI. "
        f"Your {what} arrived with {number} word{'' if number == 1 else 's'}."
    )


def _last_message(messages: list[object]) -> object:
    asked = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    return asked[-1].get("content") if asked else ""


def _head(ask: Ask, prefix: str, kind: str) -> Json:
    head = {"id": _new_id(prefix), "object": kind, "created": int(time.time())}
    return {**head, "model": ask.model, "system_fingerprint": "fp_demo"}


def _usage(asked: object, answered: object) -> Json:
    prompt, answer = count_words(asked), count_words(answered)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _response_usage(asked: int, answered: int) -> Json:
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + answered,
    }


def _vector(text: object, size: int) -> tuple[float, ...]:
    seed = hashlib.shake_256(msgspec.json.encode(text)).digest(size)
    length = sum((byte - 127.5) ** 2 for byte in seed) ** 0.5
    return tuple((byte - 127.5) / length for byte in seed)


def _base64_floats(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _each(value: Any) -> list[Any]:
    # A list of numbers is one text, given as its tokens; any other list is several texts.
    several = isinstance(value, list) and not all(isinstance(item, int) for item in value)
    return value if several else [value]


def _count(ask: Ask, field: str, default: int, most: int) -> int:
    value = ask.fields.get(field)
    if value is None:
        return default
    if type(value) is not int or not 1 <= value <= most:
        message = f"'{field}' must be a whole number from 1 to {most}."
        raise ApiError(400, message, param=field, code="invalid_value")
    return value


def _in_form(ask: Ask, pattern: re.Pattern[bytes], default: str) -> str:
    found = pattern.search(ask.head)
    return found[1].decode(errors="replace") if found else default


def _model(name: str) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": _MODELS_SINCE,
        "owned_by": "policyd-demo",
    }


def _new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(14)
