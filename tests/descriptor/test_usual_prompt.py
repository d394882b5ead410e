"""Prompts in their usual shapes: the JSON library counts the same as what counts in any shape."""

import json
import random
from collections.abc import Callable

import pytest

from policyd.descriptor import prompt, usual_prompt

TEXTS = (
    *("", "a", "hello there", "\u00e9", "\U0001f600", 'say "hi"', "a\\", "\\\\", '\\"', "x:y"),
    *("{}[]:", "[1,2]", '{"role":"user"}', "\n\t", "user" * 40, "\0", "\\u0041", ":" * 5),
)
SPELLINGS = ("\\u0061", "\\u003a", "\\ud800", "\\udc00", "\\ud83d\\ude00", "\\u00e9", "\\/")
ROUNDS = 3000
PARTS = '[{"type":"text","text":"a:b"},{"type":"image_url","image_url":%s}]'


def message(*contents: str) -> str:
    """Messages with these contents."""
    return "[" + ", ".join(f'{{"role":"user","content":{one}}}' for one in contents) + "]"


class Writer:
    """Writes prompts, most of them in a usual shape, and some with one thing that is not."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def _is(self, chance: float) -> bool:
        return self._chance.random() < chance

    def _one(self, *writers: Callable[[], str]) -> str:
        return self._chance.choice(writers)()

    def _blank(self) -> str:
        return self._chance.choice(("", "", "", " ", "\n  ", "\t"))

    def text(self) -> str:
        text = "".join(self._chance.choices(TEXTS, k=self._chance.choice((1, 1, 2, 3))))
        written = json.dumps(text, ensure_ascii=self._is(0.5))
        return f'"{self._chance.choice(SPELLINGS)}{written[1:]}' if self._is(0.03) else written

    def _name(self, name: str) -> str:
        if self._is(0.01):
            return f'"\\u{ord(name[0]):04x}{name[1:]}"'
        return f'"{name.upper() if self._is(0.01) else name}"'

    def _object(self, *members: tuple[str, str]) -> str:
        found = list(members)
        if self._is(0.03):
            found.append(self._chance.choice(members))
        if self._is(0.02):
            found.append(("x", self.text()))
        if self._is(0.2):
            self._chance.shuffle(found)
        gap = self._blank()
        return "{" + ",".join(f"{gap}{self._name(n)}{gap}:{gap}{v}" for n, v in found) + gap + "}"

    def _array(self, write: Callable[[], str]) -> str:
        gap = self._blank()
        written = [gap + write() + gap for _ in range(self._chance.randrange(4))]
        return "[" + (",".join(written) or gap) + "]"

    def _part(self) -> str:
        kind = self._chance.choice(("text", "input_text", "output_text", "image_url", "image_url"))
        if kind != "image_url":
            return self._object(("type", f'"{kind}"'), ("text", self.text()))
        url = ("url", self.text() if self._is(0.95) else self._array(self.text))
        detail = [("detail", self._chance.choice(('"low"', '"auto"', "null", '"x"')))]
        image = self._object(url, *(detail if self._is(0.3) else []))
        return self._object(("type", '"image_url"'), ("image_url", image))

    def _message(self) -> str:
        role = self._chance.choice(
            ('"user"', '"user"', '"assistant"', '"system"', f'"{"r" * 129}"')
        )
        if self._is(0.05):
            return self._object(("role", role), ("content", "null"))
        content = self._one(self.text, lambda: self._array(self._part))
        return self._object(("role", role), ("content", content))

    def _number(self) -> str:
        if self._is(0.9):
            return str(self._chance.randrange(100_000))
        return self._chance.choice(("-1", "1.5", "1e3", "null", "true", '"a"', "[]", "[1]"))

    def _numbers(self) -> str:
        return self._array(self._number)

    def prompt(self) -> bytes:
        messages, texts = partial_array(self, self._message), partial_array(self, self.text)
        lists = partial_array(self, self._numbers)
        written = self._one(messages, messages, messages, texts, self.text, self._numbers, lists)
        return written.encode("utf-8", "surrogatepass")


def partial_array(writer: Writer, write: Callable[[], str]) -> Callable[[], str]:
    """Writes an array of what `write` writes."""
    return lambda: writer._array(write)


@pytest.mark.parametrize("seed", range(4))
def test_both_ways(seed: int) -> None:
    """Each of many prompts has as many characters by the library as by the long way; the library
    knows most of them."""
    writer, known = Writer(seed), 0
    for _ in range(ROUNDS):
        raw = writer.prompt()
        for with_tokens in (False, True):
            long_way = prompt.in_any_shape(raw, with_tokens)
            assert prompt.characters(memoryview(raw), with_tokens) == long_way, raw
        known += usual_prompt.characters(raw) is not None or usual_prompt.tokens(raw) is not None
    assert ROUNDS // 3 < known < ROUNDS


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('"abc"', 3),
        ('[ "abc" , "\\u00e9\\n" ]', 5),
        (message('"a:b"', '"c"'), 4),
        (message('"\u00e9:b"', '":\\n:"'), 6),
        (message("[]"), 0),
        (message(PARTS % '{"url":"data:image/png;base64,AAAA","detail":"low"}'), 3),
        (message(PARTS % '{"url":"a\\u00e9"}'), 3),
    ],
)
def test_what_is_usual(raw: str, expected: int) -> None:
    """Texts, lists of them, and messages with texts and images are counted by the library."""
    assert usual_prompt.characters(raw.encode()) == expected


@pytest.mark.parametrize(
    "raw",
    [
        *("[]", "{}", "null", "[1]", '["a",1]', '{"role":"user","content":"a"}'),
        '[{"role":"user","content":"a","content":"b"}]',
        '[{"role":"user","content":"aaaa","content":"\\u003a"}]',
        '[{"role":"user","content":"aaaa","content":"\\u003A"}]',
        '[{"role":"user","role":"user","content":"b"}]',
        '[{"r\\u006fle":"user","content":"b"}]',
        '[{"role":"user","content":"b","name":"n"}]',
        '[{"role":"user","Content":"b"}]',
        '[{"role":"tool","content":"b"}]',
        '[{"role":"user","content":null}]',
        message('"\\ud800"'),
        message(PARTS % '{"url":["a"]}'),
        message(PARTS % '{"url":"a","url":"b"}'),
        message(PARTS % '{"url":"a","text":"b"}'),
        message(PARTS % '{"url":"a","detail":null}'),
    ],
)
def test_what_is_not(raw: str) -> None:
    """Anything else is left to the long way: a repeat, another spelling, another name."""
    assert usual_prompt.characters(raw.encode()) is None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        *(("[1,22]", 2), ("[ 1 ,\n22 , 3 ]", 3), ("[[1,2],[3,4]]", 4), ("[[1,2]]", 2)),
        *(("[1]", None), ("[]", None), ("[[],1]", None), ("[1,-2]", None), ("[1,2.5]", None)),
        *(('[1,"a"]', None), ("[1,null]", None), ("12", None), ("{}", None), ("null", None)),
    ],
)
def test_tokens(raw: str, expected: int | None) -> None:
    """Arrays of whole numbers are counted by their commas; all else is left to the long way."""
    assert usual_prompt.tokens(raw.encode()) == expected
