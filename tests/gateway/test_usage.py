"""The gateway reads an answer's metadata however it arrives; what is not there is unknown."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import brotli
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import answer_reader
from gateway.answer_reader import END, FIRST_EVENTS, EventReader, JsonReader, Reader
from gateway.usage import MAX_TEXT, MAX_TOKENS, AnswerMetadata, of_document, of_ends
from policyd.demo import replies, streams
from policyd.demo.replies import Ask
from policyd.v1.policy_pb2 import Outcome
from tests.support.codings import COMPRESS

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
UNKNOWN = AnswerMetadata()
CHAT = replies.chat(Ask("gpt-4o-mini", {"messages": [{"content": "a b"}]}, "", b"", 0))
RESPONSE = replies.response(Ask("gpt-4o-mini", {"input": "a b"}, "", b"", 0))
CHAT_SAYS = AnswerMetadata(CHAT["id"], "gpt-4o-mini", 2, CHAT["usage"]["completion_tokens"])
RESPONSE_SAYS = AnswerMetadata(
    RESPONSE["id"], "gpt-4o-mini", 2, RESPONSE["usage"]["output_tokens"], 0, 0
)
CHAT_STREAM = b"".join(streams.chat_events(CHAT, True))
RESPONSE_STREAM = b"".join(streams.response_events(RESPONSE, False))
_PATIENTLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def fed(reader: Reader | None, pieces: Iterable[bytes]) -> AnswerMetadata:
    """What a reader reads from an answer that arrives in these pieces."""
    assert reader is not None
    for piece in pieces:
        reader.feed(piece)
    return reader.metadata()


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


# Documents


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (
            {
                "input_tokens": 2006,
                "output_tokens": 300,
                "input_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 900},
            },
            (2006, 300, 1000, 900),
        ),
        (
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 2006},
            },
            (2006, 300, 0, 2006),
        ),
        # Anthropic's own, where input_tokens are those beside the cache.
        (
            {
                "input_tokens": 6,
                "output_tokens": 300,
                "cache_creation_input_tokens": 1500,
                "cache_read_input_tokens": 500,
            },
            (2006, 300, 500, 1500),
        ),
        (
            {"input_tokens": 6, "output_tokens": 3, "cache_creation_input_tokens": 4},
            (10, 3, None, 4),
        ),
        # A server that translates Anthropic's answers into OpenAI's.
        (
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "prompt_tokens_details": {"cached_tokens": 500, "cache_creation_tokens": 1500},
                "cache_creation_input_tokens": 1500,
                "cache_read_input_tokens": 500,
            },
            (2006, 300, 500, 1500),
        ),
        (
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "prompt_tokens_details": {"cached_tokens": 500},
                "cache_creation_input_tokens": 1500,
            },
            (2006, 300, 500, 1500),
        ),
        # More cached tokens than context.
        (
            {
                "input_tokens": 9,
                "output_tokens": 3,
                "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 5},
            },
            (9, 3, None, None),
        ),
        (
            {"input_tokens": 9, "output_tokens": 3, "cache_creation_input_tokens": MAX_TOKENS},
            (None, 3, None, None),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}, (9, 12, None)),
        (
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
            (2006, 300, 1920),
        ),
        (
            {
                "input_tokens": 36,
                "input_tokens_details": {"cached_tokens": 10},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 0},
            },
            (36, 87, 10),
        ),
        ({"prompt_tokens": 8, "total_tokens": 8}, (8, 0, None)),
        (
            {
                "input_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens": 4160,
                "total_tokens": 4210,
            },
            (50, 4160, None),
        ),
    ],
    ids=[
        "cache",
        "cache of chat",
        "anthropic",
        "anthropic, half",
        "translated",
        "translated, older",
        "too much",
        "too much, anthropic",
        "completions",
        "chat",
        "responses",
        "embeddings",
        "images",
    ],
)
def test_every_shape_of_usage(usage: object, tokens: tuple[int | None, ...]) -> None:
    """Every endpoint's own names for its tokens are read."""
    answer = {"id": "x-1", "object": "o", "model": "m-1", "data": [{}], "usage": usage}
    assert of_document(encode(answer)) == AnswerMetadata("x-1", "m-1", *tokens)


@pytest.mark.parametrize(
    "value",
    [
        *(-1, MAX_TOKENS + 1, 2**63, 10**30, 1.5, 3.0, True, None),
        *("7", "", [], [7], {}, {"prompt_tokens": 7}, {"a": [[[[7]]]]}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_hostile_tokens(value: object) -> None:
    """A value that is no sane number is unknown, and affects no other value."""
    usage = {"prompt_tokens": value, "completion_tokens": 5}
    details = {"cached_tokens": value}
    assert of_document(encode({"id": "x", "usage": usage})) == AnswerMetadata("x", "", None, 5)
    usage = {"input_tokens": 7, "output_tokens": value, "input_tokens_details": details}
    assert of_document(encode({"model": "m", "usage": usage})) == AnswerMetadata("", "m", 7)
    usage = {"prompt_tokens": 7, "prompt_tokens_details": value}
    assert of_document(encode({"usage": usage})) == AnswerMetadata("", "", 7)
    assert of_document(encode({"id": "x", "model": "m", "usage": value}))[:2] == ("x", "m")


def test_more_cached_than_given() -> None:
    """More cached tokens than input tokens are impossible, so their number is unknown."""
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    assert of_document(encode({"usage": usage})) == AnswerMetadata("", "", 7, 1)


@pytest.mark.parametrize("value", [7, None, True, [], {"id": "x"}, ""])
def test_names_that_are_no_strings(value: object) -> None:
    """A name that is no string is unknown."""
    assert of_document(encode({"id": value, "model": value})) == UNKNOWN


def test_long_names() -> None:
    """Long names are cut."""
    found = of_document(encode({"id": "i" * 1000, "model": "m" * 1000}))
    assert found == AnswerMetadata("i" * MAX_TEXT, "m" * MAX_TEXT)


@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"null", b"[]", b"7", b"{", b'{"id":"x"', b'{"id":"x"}}', b"\xff", b"[DONE]"),
        *(b'{"response":7}', b'{"response":[]}', b'{"id":"\xff","model":"\\ud800"}'),
        b'{"usage":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"usage":{"prompt_tokens":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}}",
    ],
    ids=lambda document: str(document)[:30],
)
def test_what_is_no_answer(document: bytes) -> None:
    """Nothing is known of a body that is no answer, and nothing fails."""
    assert of_document(document) == UNKNOWN
    assert of_ends(document, document)[1:] == UNKNOWN[1:]


@_PATIENTLY
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_at_all(head: bytes, tail: bytes) -> None:
    """No bytes make the reader fail."""
    of_document(head)
    of_ends(b'{"id":"x",' + head, tail + b',"usage":{"prompt_tokens":1}}')


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@_PATIENTLY
@given(
    st.dictionaries(st.sampled_from(["id", "model", "usage", "response", "x"]), _values),
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "output_tokens", "total_tokens", "input_tokens_details"]),
        _values,
    ),
)
def test_any_json_at_all(answer: dict[str, Any], usage: dict[str, Any]) -> None:
    """No JSON makes the reader fail, and whatever it reads can be reported."""
    for document in (answer, answer | {"usage": usage}, {"response": answer | {"usage": usage}}):
        found = of_document(encode(document))
        Outcome(
            openai_id=found.openai_id, model=found.model, input_tokens=found.input_tokens or 0
        ).SerializeToString()
        assert all(number is None or 0 <= number <= MAX_TOKENS for number in found[2:])


# Large documents


def large(middle: object) -> dict[str, Any]:
    """An answer with much between its head and its tail."""
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    return {
        "id": "x-1",
        "object": "o",
        "model": "m-1",
        "output": middle,
        "usage": usage,
        "user": None,
        "metadata": {"id": "no", "model": "no"},
    }


LARGE_SAYS = AnswerMetadata("x-1", "m-1", 5, 6, 3)
MIDDLES: dict[str, object] = {
    "text": "a word " * 50_000,
    "quotes": [{"text": '","id":"no","usage":{"prompt_tokens":1},"model":"no"' * 3000}],
    "backslashes": '\\"id\\":\\\\"' * 20_000,
    "numbers": [[0.123456789] * 20_000],
    "nested": [{"id": "no", "model": "no", "usage": {"prompt_tokens": 1}}] * 3000,
}


@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
@pytest.mark.parametrize("size", [1000, 65536, 10**9])
def test_a_large_answer(middle: object, size: int) -> None:
    """The ends of a large answer suffice, whatever stands between them."""
    document = encode(large(middle))
    assert len(document) > 2 * END
    assert fed(JsonReader(), pieces(document, size)) == LARGE_SAYS


@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_a_large_last_event(middle: object) -> None:
    """The last event of a response repeats all of it."""
    last = {"type": "response.completed", "response": large(middle), "sequence_number": 9}
    stream = b"event: response.completed\ndata: %s\n\n" % encode(last)
    for size in (1000, 65536, 10**9):
        assert fed(EventReader(), pieces(stream, size)) == LARGE_SAYS


def test_a_large_answer_that_says_so_late() -> None:
    """Embeddings name their model behind their numbers."""
    answer = {
        "object": "list",
        "data": [{"embedding": [0.1] * 50_000}],
        "model": "m-1",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    assert fed(JsonReader(), pieces(encode(answer), 65536)) == AnswerMetadata("", "m-1", 8, 0)


def test_a_large_answer_that_breaks_off() -> None:
    """The head of a large answer that breaks off is known, its tokens are not."""
    document = encode(large("a word " * 50_000))[:-2000]
    assert fed(JsonReader(), pieces(document, 65536)) == AnswerMetadata("x-1", "m-1")


@pytest.mark.parametrize("length", range(2 * END - 3, 2 * END + 4))
def test_the_bound(length: int) -> None:
    """An answer is read alike whether it is kept whole or not."""
    padding = length - len(encode(large("")))
    document = encode(large("x" * padding))
    assert len(document) == length
    assert fed(JsonReader(), pieces(document, END)) == LARGE_SAYS
    assert fed(JsonReader(), pieces(document, 999)) == LARGE_SAYS


# Streams


@pytest.mark.parametrize(
    "line_end", [b"\n", *(pytest.param(end, marks=pytest.mark.slow) for end in (b"\r\n", b"\r"))]
)
@pytest.mark.parametrize(
    ("stream", "states"), [(CHAT_STREAM, CHAT_SAYS), (RESPONSE_STREAM, RESPONSE_SAYS)]
)
def test_split_at_every_byte(stream: bytes, states: AnswerMetadata, line_end: bytes) -> None:
    """The result is the same wherever a piece ends."""
    stream = stream.replace(b"\n", line_end)
    for at in range(len(stream)):
        assert fed(EventReader(), [stream[:at], stream[at:]]) == states
    assert fed(EventReader(), pieces(stream, 1)) == states


_events = st.lists(
    st.sampled_from(
        [
            b"data: " + encode({"id": "x-1", "model": "m-1", "choices": [], "usage": None}),
            b'data:{"id":"x-2","model":"m-2","usage":{"prompt_tokens":3,"completion_tokens":1}}',
            b'data: {"id":"","model":"","choices":[],"prompt_filter_results":[]}',
            b'data: {"usage" : {"prompt_tokens":-3,"completion_tokens":"1"}}',
            b"data: " + encode({"response": {"id": "r-1", "usage": {"output_tokens": 4}}}),
            b"data: " + encode({"id": "big", "text": "x" * 3 * END, "usage": {"input_tokens": 2}}),
            b"data: [DONE]",
            b': "usage": {',
            b"event: response.created",
            b"",
            b"data: {",
        ]
    ),
    max_size=2 * FIRST_EVENTS,
)


@_PATIENTLY
@given(_events, st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]), st.booleans(), st.data())
def test_split_anywhere(
    events: list[bytes], line_end: bytes, ends: bool, data: st.DataObject
) -> None:
    """Where the pieces of any stream end makes no difference."""
    stream = line_end.join(events) + (line_end if ends else b"")
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    split = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert fed(EventReader(), split) == fed(EventReader(), [stream])


def test_a_stream_without_usage() -> None:
    """The ID and model of a stream without usage are known, its tokens are not."""
    stream = b"".join(streams.chat_events(CHAT, False))
    assert fed(EventReader(), pieces(stream, 100)) == (*CHAT_SAYS[:2], *(None,) * 4)


def test_a_stream_that_counts_as_it_goes() -> None:
    """Some upstreams count in every event: the last one is right."""
    events = [
        encode({"id": "x", "model": "m", "usage": {"prompt_tokens": 5, "completion_tokens": count}})
        for count in range(100)
    ]
    stream = b"".join(b"data: %s\n\n" % event for event in events)
    assert fed(EventReader(), pieces(stream, 333)) == AnswerMetadata("x", "m", 5, 99)


def test_a_stream_that_begins_without_a_name() -> None:
    """Azure's first event has an empty ID and model."""
    first = {"id": "", "model": "", "choices": [], "prompt_filter_results": []}
    stream = b"data: %s\n\n" % encode(first) + CHAT_STREAM
    assert fed(EventReader(), pieces(stream, 50)) == CHAT_SAYS


# Which reader reads which answer


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (JSON, JsonReader),
        ("application/json; charset=utf-8", JsonReader),
        ("APPLICATION/JSON", JsonReader),
        ("application/problem+json", JsonReader),
        (EVENTS, EventReader),
        ("text/event-stream", EventReader),
        ("audio/mpeg", type(None)),
        ("text/html", type(None)),
        ("", type(None)),
    ],
)
def test_which_reader(content_type: str, expected: type) -> None:
    """The reader follows the Content-Type; an answer that is no JSON and no events is not read."""
    assert type(answer_reader.reader(content_type, "")) is expected
    assert type(answer_reader.reader(content_type, "identity")) is expected


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZIP": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    " deflate": _raw_deflate,
    "br": brotli.compress,
    "zstd": COMPRESS["zstd"],
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [1, 100, 10**9])
def test_compressed(coding: str, size: int) -> None:
    """An answer is decompressed as it arrives."""
    pack = CODINGS[coding]
    size += coding.endswith("deflate")  # Two bytes tell which of two formats it is.
    answer = pieces(pack(encode(CHAT)), size)
    assert fed(answer_reader.reader(JSON, coding), answer) == CHAT_SAYS
    answer = pieces(pack(RESPONSE_STREAM), size)
    assert fed(answer_reader.reader(EVENTS, coding), answer) == RESPONSE_SAYS


@pytest.mark.parametrize("coding", CODINGS)
def test_badly_compressed(coding: str) -> None:
    """A compressed answer that is damaged, cut or followed by other bytes causes no failure."""
    packed = CODINGS[coding](encode(large("a word " * 20_000)))
    for answer in (packed[:-20], b"x" + packed, packed[:50] + packed[60:], encode(CHAT)):
        assert fed(answer_reader.reader(JSON, coding), pieces(answer, 64))[2:] == (None,) * 4
    followed = [*pieces(packed, 64), *pieces(packed, 64)]
    assert fed(answer_reader.reader(JSON, coding), followed) == LARGE_SAYS


@pytest.mark.parametrize("coding", ["gzip, gzip", "compress", "x", "gzip;q=1", ","])
def test_an_unknown_coding(coding: str) -> None:
    """Nothing is known of an answer with an unknown coding."""
    answer = gzip.compress(gzip.compress(encode(CHAT)))
    assert fed(answer_reader.reader(JSON, coding), [answer, answer]) == UNKNOWN


# Bounds


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_more_than_is_decompressed(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that grows beyond the bound is read no further."""
    answer = pieces(CODINGS[coding](encode(large("a word " * 20_000))), 64)
    for bound in (100_000, 10**9):
        monkeypatch.setattr(answer_reader, "MAX_DECOMPRESSED", bound)
        tokens = fed(answer_reader.reader(JSON, coding), answer)[2:]
        assert tokens == (LARGE_SAYS[2:] if bound == 10**9 else (None,) * 4)


def _bomb(pack: Callable[[bytes], bytes]) -> list[bytes]:
    return pieces(pack(b" " * 200 * 2**20), 65536)


CHUNK = b"x" * 65536
ENDLESS = 1000
HUGE: dict[str, Callable[[], tuple[str, str, Iterable[bytes]]]] = {
    "json": lambda: (JSON, "", (CHUNK for _ in range(ENDLESS))),
    "one line": lambda: (EVENTS, "", (CHUNK for _ in range(ENDLESS))),
    "empty lines": lambda: (EVENTS, "", (b"\n" * 65536 for _ in range(20))),
    "gzip bomb": lambda: (JSON, "gzip", _bomb(gzip.compress)),
    "zstd bomb": lambda: (JSON, "zstd", _bomb(COMPRESS["zstd"])),
    "br bomb": lambda: (JSON, "br", _bomb(lambda data: brotli.compress(data, quality=1))),
    "bomb of events": lambda: (EVENTS, "gzip", _bomb(gzip.compress)),
    "garbage behind gzip": lambda: (
        JSON,
        "gzip",
        (CHUNK if number else gzip.compress(b"{}") for number in range(ENDLESS)),
    ),
}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[] if name == "gzip bomb" else [pytest.mark.slow])
        for name, make in HUGE.items()
    ],
)
def test_memory(make: Callable[[], tuple[str, str, Iterable[bytes]]]) -> None:
    """However long an answer is, the reader keeps a few bytes of it and takes a few MB briefly."""
    content_type, coding, answer = make()
    reader = answer_reader.reader(content_type, coding)
    assert reader is not None
    tracemalloc.start()
    try:
        for piece in answer:
            reader.feed(piece)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20
    assert peak < 6 * answer_reader.MAX_PIECE
    assert reader.metadata() == UNKNOWN
