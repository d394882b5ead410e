"""The metadata of an upstream's answer, of any endpoint: its ID, its model and its tokens.

The input is a JSON document, whole or only its two ends. Every function is total: a member that is
missing, or is not of the type that it should be, is unknown.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec

MAX_TEXT = 256
"""Characters of an ID or a name. Longer ones are cut."""
MAX_TOKENS = 10**9
"""Tokens that an answer may claim. A larger number counts as unknown."""
_TRIES = 8
"""Places that are tried, at each end of a cut document, as the end or the beginning of a member."""


class AnswerMetadata(NamedTuple):
    """The metadata of one answer. None and "" stand for what is unknown."""

    openai_id: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None

    @property
    def is_named(self) -> bool:
        """Whether both the ID and the model are known."""
        return bool(self.openai_id and self.model)

    def then(self, later: "AnswerMetadata") -> "AnswerMetadata":
        """Both together; where both know a value, `later` counts."""
        tokens = self[2:] if later.input_tokens is later.output_tokens is None else later[2:]
        return AnswerMetadata(later.openai_id or self.openai_id, later.model or self.model, *tokens)


UNKNOWN = AnswerMetadata()


class _Answer(msgspec.Struct):
    id: Any = None
    model: Any = None
    usage: Any = None
    response: "_Answer | None" = None
    """In an event of the responses API: the object that has the other members."""


_decoder = msgspec.json.Decoder(_Answer)
_UNREADABLE = (ValueError, RecursionError)  # msgspec's errors and UnicodeDecodeError are the former


def of_document(document: bytes) -> AnswerMetadata:
    """The metadata of a whole JSON document."""
    answer = _read(document)
    return AnswerMetadata() if answer is None else _metadata(answer)


def of_ends(head: bytes, tail: bytes) -> AnswerMetadata:
    """The metadata of a JSON document whose middle is missing.

    A member counts only at the document's top level: the head up to it, closed with the brackets
    that are open there, has to be a JSON document, and so has the tail from it on.
    """
    is_event = _RESPONSE_EVENT.search(head) is not None
    begun = _first(_heads(head, b"}}" if is_event else b"}"))
    ended = _first(_tails(tail, b'{"response":{' if is_event else b"{"))
    return begun.then(ended)


_RESPONSE_EVENT = re.compile(rb'"type"\s*:\s*"response\.')
_NAME = re.compile(rb'"(?:id|model)"\s*:\s*"(?:[^"\\]|\\.)*+"')
_MEMBER = re.compile(rb'"(?:id|model|usage)"\s*:')


def _heads(head: bytes, closing: bytes) -> Iterator[bytes]:
    """Documents that may be the head up to the end of one of its members, the longest first."""
    ends = [match.end() for match in islice(_NAME.finditer(head), _TRIES)]
    return (head[:end] + closing for end in reversed(ends))


def _tails(tail: bytes, opening: bytes) -> Iterator[bytes]:
    """Documents that may be the tail from the beginning of one of its members, longest first."""
    begins = [match.start() for match in _MEMBER.finditer(tail)]
    return (opening + tail[begin:] for begin in begins[-_TRIES:])


def _first(documents: Iterator[bytes]) -> AnswerMetadata:
    """The metadata of the first that is valid JSON."""
    answers = (_read(document) for document in documents)
    return next((_metadata(answer) for answer in answers if answer is not None), AnswerMetadata())


def _read(document: bytes) -> _Answer | None:
    try:
        answer = _decoder.decode(document)
    except _UNREADABLE:
        return None
    return answer.response or answer


def _metadata(answer: _Answer) -> AnswerMetadata:
    return AnswerMetadata(_text(answer.id), _text(answer.model), *_tokens(answer.usage))


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


class _Tokens(NamedTuple):
    """Numbers of tokens, in the order of the last members of AnswerMetadata."""

    given: int | None = None
    generated: int | None = None
    cached: int | None = None
    cache_write: int | None = None


def _tokens(usage: object) -> _Tokens:
    """The tokens of context and those generated, and how many of the context were read from the
    upstream's cache and written to it."""
    if not isinstance(usage, dict):
        return _Tokens()
    # The second names are those of the responses and images APIs.
    given = _count(usage, "prompt_tokens", "input_tokens")
    generated = _count(usage, "completion_tokens", "output_tokens")
    if generated is None and given is not None and given == _count(usage, "total_tokens"):
        generated = 0  # Embeddings give their usage in this form.
    cached, written, is_apart = _cache(usage)
    of_cache = (cached or 0) + (written or 0)
    if given is not None and is_apart:
        given += of_cache
    if given is None or not of_cache <= given <= MAX_TOKENS:
        return _Tokens(None if is_apart else given, generated)
    return _Tokens(given, generated, cached, written)


def _cache(usage: dict[str, object]) -> tuple[int | None, int | None, bool]:
    """Tokens read from the cache and written to it, and whether the context leaves them out."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    if not isinstance(details, dict):
        details = {}
    read = _count(details, "cached_tokens")
    written = _count(details, "cache_write_tokens", "cache_creation_tokens")
    # Anthropic's names. Its own input_tokens leave both out; the prompt_tokens of servers that
    # translate for it include them.
    is_apart = read is written is None and "prompt_tokens" not in usage
    if read is None:
        read = _count(usage, "cache_read_input_tokens")
    if written is None:
        written = _count(usage, "cache_creation_input_tokens")
    return read, written, is_apart


def _count(counts: dict[str, object], *names: str) -> int | None:
    """The first number with one of these names that can be a count of tokens."""
    for name in names:
        value = counts.get(name)
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            return value
    return None
