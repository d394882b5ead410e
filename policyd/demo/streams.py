"""The demo upstream's answers streamed word by word, as the server-sent events of OpenAI's API.

Each function takes a whole answer, as replies.py makes it, and yields its events one at a time.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

Json = dict[str, Any]

_DONE = b"data: [DONE]\n\n"
_WORD = re.compile(r"\S++\s*+")


def chat_events(answer: Json, with_usage: bool) -> Iterator[bytes]:
    """Stream a chat completion: the role, the words, the reason for stopping."""
    text: str = answer["choices"][0]["message"]["content"]
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(text)]
    choices: list[Json] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    return _chunks({**answer, "object": "chat.completion.chunk"}, choices, with_usage)


def completion_events(answer: Json, with_usage: bool) -> Iterator[bytes]:
    """Stream a completion, one choice after the other."""
    choices: list[Json] = []
    for index, choice in enumerate(answer["choices"]):
        pieces = _pieces(choice["text"])
        choices += [{"index": index, "text": piece, "finish_reason": None} for piece in pieces]
        choices.append({"index": index, "text": "", "finish_reason": "stop"})
    return _chunks(answer, choices, with_usage)


def response_events(answer: Json, _with_usage: bool) -> Iterator[bytes]:
    """Stream a response of one message; its last event always has the usage."""
    number = itertools.count()

    def event(kind: str, **fields: Any) -> bytes:
        return _event({"type": kind, "sequence_number": next(number), **fields}, kind)

    item: Json = answer["output"][0]
    part: Json = item["content"][0]
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    begun_item = {**item, "status": "in_progress", "content": []}
    at: Json = {"item_id": item["id"], "output_index": 0, "content_index": 0}

    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    yield event("response.output_item.added", output_index=0, item=begun_item)
    yield event("response.content_part.added", **at, part={**part, "text": ""})
    for piece in _pieces(part["text"]):
        yield event("response.output_text.delta", **at, delta=piece, logprobs=[])
    yield event("response.output_text.done", **at, text=part["text"], logprobs=[])
    yield event("response.content_part.done", **at, part=part)
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=answer)


def _chunks(answer: Json, choices: Iterable[Json], with_usage: bool) -> Iterator[bytes]:
    usage = answer["usage"]
    head = {key: value for key, value in answer.items() if key != "usage"}
    if with_usage:
        head["usage"] = None  # as OpenAI sends it on every chunk but the last
    for choice in choices:
        yield _event({**head, "choices": [{**choice, "logprobs": None}]})
    if with_usage:
        yield _event({**head, "choices": [], "usage": usage})
    yield _DONE


def _pieces(text: str) -> list[str]:
    return _WORD.findall(text)


def _event(data: Json, name: str | None = None) -> bytes:
    title = b"" if name is None else b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (title, msgspec.json.encode(data))
