"""What an upstream's answer says of itself: its ID, its model and its tokens, of any endpoint.

Answers are JSON documents, whole or only both ends of them. Every function is total: what is not
there, or not what it should be, is unknown.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, NamedTuple, TypeVar

import msgspec

MAX_TEXT = 256
"""Characters of an ID or a name. Longer ones are cut."""
MAX_TOKENS = 10**9
"""Tokens that an answer may claim. A number beyond that is none."""
_TRIES = 8
"""Places at each end of a cut document where its members may begin or end."""


class Said(NamedTuple):
    """What an answer says of itself. None and "" stand for what it does not say."""

    openai_id: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def is_named(self) -> bool:
        """Whether it says both its ID and its model."""
        return bool(self.openai_id and self.model)

    def then(self, later: "Said") -> "Said":
        """What both say; where both do, the later one counts."""
        tokens = self[2:] if later.input_tokens is later.output_tokens is None else later[2:]
        return Said(later.openai_id or self.openai_id, later.model or self.model, *tokens)


_Raw = msgspec.Raw | msgspec.UnsetType


class _Answer(msgspec.Struct):
    id: _Raw = msgspec.UNSET
    model: _Raw = msgspec.UNSET
    usage: _Raw = msgspec.UNSET
    response: _Raw = msgspec.UNSET
    """In the events of the responses API, where the rest is within."""


class _Usage(msgspec.Struct):
    prompt_tokens: _Raw = msgspec.UNSET
    completion_tokens: _Raw = msgspec.UNSET
    prompt_tokens_details: _Raw = msgspec.UNSET
    # Of responses and images.
    input_tokens: _Raw = msgspec.UNSET
    output_tokens: _Raw = msgspec.UNSET
    input_tokens_details: _Raw = msgspec.UNSET
    total_tokens: _Raw = msgspec.UNSET


class _Details(msgspec.Struct):
    cached_tokens: _Raw = msgspec.UNSET


_answer = msgspec.json.Decoder(_Answer)
_usage = msgspec.json.Decoder(_Usage)
_details = msgspec.json.Decoder(_Details)
_text = msgspec.json.Decoder(str)
_count = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)])
_UNREADABLE = (ValueError, RecursionError)  # msgspec's errors and UnicodeDecodeError are the former


def of_document(document: bytes) -> Said:
    """What a JSON document says."""
    answer = _read(document)
    return Said() if answer is None else _said(answer)


def of_ends(head: bytes, tail: bytes) -> Said:
    """What a JSON document says whose middle is missing.

    A member counts if the document closes, or has opened, as many brackets as it must around it.
    """
    is_event = _RESPONSE_EVENT.search(head) is not None
    begun = _first(_heads(head, b"}}" if is_event else b"}"))
    ended = _first(_tails(tail, b'{"response":{' if is_event else b"{"))
    return begun.then(ended)


_RESPONSE_EVENT = re.compile(rb'"type"\s*:\s*"response\.')
_NAME = re.compile(rb'"(?:id|model)"\s*:\s*"(?:[^"\\]|\\.)*+"')
_MEMBER = re.compile(rb'"(?:id|model|usage)"\s*:')


def _heads(head: bytes, closing: bytes) -> Iterator[bytes]:
    """What may be the document up to one of its members, the longest first."""
    ends = [match.end() for match in islice(_NAME.finditer(head), _TRIES)]
    return (head[:end] + closing for end in reversed(ends))


def _tails(tail: bytes, opening: bytes) -> Iterator[bytes]:
    """What may be the document from one of its members on, the longest first."""
    begins = [match.start() for match in _MEMBER.finditer(tail)]
    return (opening + tail[begin:] for begin in begins[-_TRIES:])


def _first(documents: Iterator[bytes]) -> Said:
    """What the first of them says that is a document at all."""
    answers = (_read(document) for document in documents)
    return next((_said(answer) for answer in answers if answer is not None), Said())


def _read(document: bytes) -> _Answer | None:
    try:
        answer = _answer.decode(document)
        return answer if answer.response is msgspec.UNSET else _answer.decode(answer.response)
    except _UNREADABLE:
        return None


def _said(answer: _Answer) -> Said:
    return Said(_string(answer.id), _string(answer.model), *_tokens(answer.usage))


def _string(raw: _Raw) -> str:
    return (_value(_text, raw) or "")[:MAX_TEXT]


def _tokens(raw: _Raw) -> tuple[int | None, int | None, int | None]:
    """Those of context, those generated, and how many of the former were cached."""
    usage = _value(_usage, raw)
    if usage is None:
        return None, None, None
    given = _either(usage.prompt_tokens, usage.input_tokens)
    generated = _either(usage.completion_tokens, usage.output_tokens)
    total = _value(_count, usage.total_tokens)
    if generated is None and given is not None and given == total:
        generated = 0  # As embeddings say it.
    details = _value(_details, usage.prompt_tokens_details)
    details = details or _value(_details, usage.input_tokens_details)
    cached = _value(_count, details.cached_tokens) if details else None
    if cached is not None and (given is None or cached > given):
        cached = None
    return given, generated, cached


def _either(one: _Raw, other: _Raw) -> int | None:
    found = _value(_count, one)
    return _value(_count, other) if found is None else found


_Value = TypeVar("_Value")


def _value(decoder: "msgspec.json.Decoder[_Value]", raw: _Raw) -> _Value | None:
    if raw is msgspec.UNSET:
        return None
    try:
        return decoder.decode(raw)
    except _UNREADABLE:
        return None
