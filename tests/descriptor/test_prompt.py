"""How many characters a prompt has: against a slow, plain count of what a JSON library reads."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.descriptor import prompt
from policyd.descriptor.body import read_body
from policyd.descriptor.json_members import MAX_DEPTH
from policyd.engine import endpoints
from policyd.engine.states import UNKNOWN_NUMBER, Number, NumberState, UserState

CHAT = endpoints.ENDPOINTS["/chat/completions"]
WORDS = frozenset(
    {
        *("type", "role", "id", "name", "status", "format", "detail", "phase", "model"),
        *("media_type", "filename", "server_label", "call_id", "tool_call_id", "item_id"),
        *("response_id", "file_id", "container_id", "approval_request_id"),
    }
)
DATA = frozenset({"url", "image_url", "file_url", "data", "file_data", "encrypted_content"})
NAMES = sorted({*WORDS, *DATA, "content", "text", "arguments", "output", "x", "Type", 'a"b', "\\"})
Pairs = list[tuple[str, Any]]
"""An object, repeats kept, in a tuple lest it be taken for an array."""
Object = tuple[Pairs]


# --- the plain count ---------------------------------------------------------------------------


def counted(value: Any, name: str = "", *, tokens: bool = False) -> int:
    """The characters of a value that stands under `name`."""
    if isinstance(value, str):
        is_word = name in WORDS and len(value) <= 128 and '"' not in value
        return 0 if is_word or name in DATA else len(value)
    if isinstance(value, tuple):
        return sum(counted(inner, name, tokens=tokens) for name, inner in value[0])
    if isinstance(value, list):
        numbers = sum(type(one) in (int, float) for one in value)
        return 4 * numbers * tokens + sum(counted(one, tokens=tokens) for one in value)
    return 0


def counted_in(body: bytes) -> int:
    """The same of a whole body."""
    ((pairs,),) = [json.loads(body, object_pairs_hook=lambda pairs: (pairs,))]
    members = [(name.casefold(), value) for name, value in pairs]
    return sum(
        counted(value, tokens=name in ("prompt", "input"))
        for name, value in members
        if name in ("prompt", "messages", "input", "instructions")
    )


def chars(body: bytes) -> Number:
    return read_body(body, "application/json", "", CHAT).prompt_chars


# --- bodies ------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        'say "hi"',
        "\\",
        '\\"',
        "\\u0041",
        "a\nb\tc",
        "\U0001f43c" * 3,
        '{"role":"user"}',
        ", 1 [2",
        "",
    ]
)
words = st.sampled_from(["user", "text", "call_1", "r" * 128, "r" * 129, "in the place of a word"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(st.lists(st.tuples(st.sampled_from(NAMES), inner | words), max_size=4))
    ),
    max_leaves=12,
)
tokens = st.lists(st.integers(0, 200_000), max_size=5)


def an_object(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[Object]:
    return st.tuples(st.fixed_dictionaries(members).map(lambda found: list(found.items())))


parts = an_object(type=st.just("text"), text=texts) | an_object(
    type=st.just("image_url"),
    image_url=an_object(url=st.just("data:image/png;base64,AA=="), detail=st.just("low")),
)
calls = an_object(
    id=words, type=st.just("function"), function=an_object(name=words, arguments=texts)
)
messages = st.lists(
    an_object(role=words, content=texts | st.none() | st.lists(parts, max_size=3))
    | an_object(role=st.just("assistant"), tool_calls=st.lists(calls, max_size=2))
    | an_object(role=st.just("tool"), tool_call_id=words, content=texts),
    max_size=4,
)
items = st.lists(
    an_object(type=st.just("message"), role=words, content=texts | st.lists(parts, max_size=2))
    | an_object(type=st.just("function_call"), call_id=words, name=words, arguments=texts)
    | an_object(type=st.just("function_call_output"), call_id=words, output=texts)
    | an_object(type=st.just("reasoning"), summary=st.lists(parts), encrypted_content=texts)
    | an_object(type=st.just("input_image"), image_url=texts, detail=words),
    max_size=4,
)
prompts = texts | st.lists(texts, max_size=3) | tokens | st.lists(tokens, max_size=3)
members = (
    st.tuples(st.just("messages") | st.just("MESSAGES"), messages | values)
    | st.tuples(st.just("input"), prompts | items | values)
    | st.tuples(st.just("prompt"), prompts | values)
    | st.tuples(st.just("instructions"), texts | values)
    | st.tuples(st.sampled_from(["model", "user", "tools"]), values)
)
bodies = st.tuples(st.lists(members, max_size=4))
blanks = st.sampled_from(["", " ", "\n  ", "\t\r\n"])


def written(value: Any, in_ascii: bool, blank: str) -> str:
    """JSON of a value, with as many blanks as it may have."""
    if isinstance(value, tuple):
        names = [json.dumps(name, ensure_ascii=in_ascii) for name, _ in value[0]]
        inner = [written(one, in_ascii, blank) for _, one in value[0]]
        pairs = [f"{blank}{n}{blank}:{blank}{i}{blank}" for n, i in zip(names, inner, strict=True)]
        return "{" + (",".join(pairs) or blank) + "}"
    if isinstance(value, list):
        elements = [f"{blank}{written(one, in_ascii, blank)}{blank}" for one in value]
        return "[" + ",".join(elements) + "]"
    return json.dumps(value, ensure_ascii=in_ascii)


@given(bodies, st.booleans(), blanks)
@example(([("messages", [([("type", "text"), ("text", '"')],)])],), True, " ")
@example(([("prompt", ["a", 1, [2, -3.5e7], None, True])],), True, "")
def test_any_body(body: Object, in_ascii: bool, blank: str) -> None:
    """Whatever its shape, a body has as many characters as the plain count finds."""
    text = written(body, in_ascii, blank).encode()
    assert chars(text) == (NumberState.GIVEN, counted_in(text))


@given(st.text(st.characters(codec=None), max_size=20) | texts)
@example("\ud83d\ud83d\ude00\ude00 \ud83d\\u \\ude00")
def test_any_text(text: str) -> None:
    """An escape is one character, as are a surrogate pair and half of one that stands alone."""
    raw = json.dumps(text).encode()
    assert prompt.characters(memoryview(raw)) == len(json.loads(raw))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", 0),
        (b'{"messages":null,"prompt":1,"input":true,"instructions":{}}', 0),
        (b'{"prompt":"abc"}', 3),
        (b'{"prompt":["abc","d"]}', 4),
        (b'{"prompt":[1,22,-3]}', 12),
        (b'{"prompt":[[1],[],[22 , 3]]}', 12),
        (b'{"prompt":["a",1]}', 5),
        (b'{"messages":[{"content":[1,2]}]}', 0),
        (b'{"prompt":"ab","prompt":"c"}', 3),
        (b'{"prompt":"ab","Prompt":"c","pro\\u006dpt":"d"}', 4),
        (b'{"messages":[{"role":"user","content":"ab","content":"c"}]}', 3),
        (b'{"messages":[{"role":"user","cont\\u0065nt":"ab"}]}', 2),
        (b'{"messages":[{"r\\u006fle":"user","Role":"user"}]}', 8),
        (b'{"messages":[{"role":"' + b"r" * 129 + b'"}]}', 129),
        (b'{"messages":[{"role":["user"]}]}', 4),
        (b'{"messages":{"messages":[{"prompt":"ab"}]}}', 2),
        (b'{"x":{"prompt":"ab"}}', 0),
        (b'{"input":[{"type":"image_generation_call","result":"' + b"A" * 2000 + b'=="}]}', 0),
        (b'{"input":[{"type":"program_output","result":"done, and well"}]}', 14),
        (b'{"input":[{"type":"program_output","result":"' + b"in words " * 300 + b'"}]}', 2700),
        (b'{"input":[{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]}', 0),
        (b'{"instructions":"ab","input":"cd"}', 4),
        ('{"prompt":"h\u00e9\U0001f43c\\ud83d\\udc3c\\n\\\\"}'.encode(), 6),
    ],
)
def test_what_counts(body: bytes, expected: int) -> None:
    """Text counts, every repeat of it, wherever the API takes it; words and data do not."""
    assert chars(body) == (NumberState.GIVEN, expected)


def test_numbers() -> None:
    """Numbers count as tokens only where they are asked for."""
    raw = b'[1,[2,"ab"],-3]'
    assert prompt.characters(memoryview(raw)) == prompt.in_any_shape(raw) == 2
    assert prompt.characters(memoryview(raw), with_tokens=True) == 14


def test_a_large_prompt() -> None:
    """A prompt that is read in pieces has as many characters as one that is read at once."""
    message = (
        ' {"role" : "user","content":[{"type":"text","text": "say \\"\\ud83d\\udc3c\\\\"},'
        '{"x":["a",{"url":"https://e.org/"}]}],"tool_calls":[],"name" :"n"},"plain",[1,2],\n'
    )
    for count in (1, 30_000):
        raw = f'[{message * count}"end"]'.encode()
        assert prompt.characters(memoryview(raw), with_tokens=True) == 21 * count + 3
    assert len(raw) > prompt._AT_ONCE
    for size in (prompt._AT_ONCE - 2, prompt._AT_ONCE):
        assert prompt.in_any_shape(b'"' + b"a" * size + b'"') == size
    assert chars(b'{"input":[' + message.encode() + b'""]}') == (NumberState.GIVEN, 21)


def test_many_parts() -> None:
    """Half a million strings are counted; as many objects are too many for any reader."""
    many = 500_000
    assert chars(b'{"messages":[' + b'"",' * many + b'"a"]}') == (NumberState.GIVEN, 1)
    assert chars(b'{"prompt":[' + b"1," * many + b"1]}") == (NumberState.GIVEN, 4 * many + 4)
    assert chars(b'{"prompt":[' + b"null,1," * many + b"1]}") == (NumberState.GIVEN, 4 * many + 4)
    parts = b'{"type":"text","text":""},' * many
    unreadable = read_body(b'{"messages":[' + parts + b'""]}', "", "", CHAT)
    assert unreadable.user.state is UserState.TOO_COMPLEX
    assert unreadable.prompt_chars == UNKNOWN_NUMBER


def test_deep_text() -> None:
    """Text counts as deep as a body may nest."""
    depth = MAX_DEPTH - 1
    nested = b'{"x":' * depth + b'"abc"' + b"}" * depth
    assert chars(b'{"messages":' + nested + b"}") == (NumberState.GIVEN, 3)
    assert chars(b'{"messages":[' + nested + b"]}") == UNKNOWN_NUMBER
