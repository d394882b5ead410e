"""JSON members, read each of three ways, beside what Python's own library reads."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.descriptor import json_members
from policyd.descriptor.content_encoding import UnreadableBody
from policyd.descriptor.json_members import MAX_DEPTH
from policyd.engine.states import UserState

WANTED = frozenset({"user", "model", ""})
# What makes each way take its turn: a small body, a larger one, and one with a repeated name.
WAYS = {"glance": "", "walk": f'"pad": "{"x" * 9000}"', "scan": '"pad": 1, "pad": [{}]'}
NAMES = st.sampled_from(
    ["user", "User", "u\\u0073er", "a:b", "a\\u003ab", "a", "", "model", "\\\\", "[{"]
)
SCALARS = st.sampled_from(
    ["1", "-0.5e3", "true", "null", '""', '"a"', '"\\""', '"]}:,{["', '"\\\\"', '"é"']
)
BLANKS = st.sampled_from(["", " ", "\n\t "])


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """The text of an object, whose names may stand there several times."""
    pairs = draw(st.lists(st.tuples(NAMES, values), max_size=4))
    blank = draw(BLANKS)
    inner = ",".join(f'{blank}"{name}"{blank}:{blank}{value}{blank}' for name, value in pairs)
    return f"{{{inner or blank}}}"


def lists(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The text of a list."""
    return st.lists(values, max_size=3).map(lambda texts: f"[{', '.join(texts)}]")


VALUES = st.recursive(SCALARS, lambda inner: objects(inner) | lists(inner), max_leaves=6)


def expected(text: str) -> dict[str, list[tuple[str, Any]]]:
    """Every occurrence of a member that is wanted, as Python's library has it."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, value in json.loads(text, object_pairs_hook=tuple):
        if name.casefold() in WANTED:
            found.setdefault(name.casefold(), []).append((name, value))
    return found


def actual(text: str) -> dict[str, list[tuple[str, Any]]]:
    """The same, as it is read here."""
    found = json_members.members(text.encode(), WANTED)
    return {
        small: [(name, json.loads(bytes(raw), object_pairs_hook=tuple)) for name, raw in members]
        for small, members in found.items()
    }


@pytest.mark.parametrize("way", WAYS)
@given(text=objects(VALUES), is_first=st.booleans())
@example(text='{"user":[],"user":{}}', is_first=True)
@example(text='{"x":{"user":1},"user":"a"}', is_first=False)
def test_every_occurrence(way: str, text: str, is_first: bool) -> None:
    """Each way finds every occurrence of a member at the top, with its value, and no other."""
    parts = [part for part in (WAYS[way], text[1:-1].strip()) if part]
    padded = "{" + ", ".join(parts if is_first else parts[::-1]) + "}"
    assert actual(padded) == expected(padded)


def tree(fan: int, depth: int, opening: str, closing: str) -> str:
    """A tree that is `depth` deep, each of whose levels holds `fan` of the next."""
    level = opening + closing
    for _ in range(depth - 1):
        inner = level if opening == "[" else f'"a":{level}'
        level = opening + ",".join([inner] * fan) + closing
    return level


@pytest.mark.parametrize("kind", ["[]", "{}"])
@pytest.mark.parametrize(("fan", "depth"), [(4, 8), (2, 12), (9, 5), (2, 3), (1, 1)])
def test_the_depth_of_trees(kind: str, fan: int, depth: int) -> None:
    """How deep JSON nests is known to a level, whatever its shape."""
    bottom = tree(fan, depth, *kind)
    for more, is_read in ((0, True), (1, False)):
        chain = MAX_DEPTH - 1 - depth + more
        body = f'{{"user": "a", "x": {"[" * chain}{bottom}{"]" * chain}}}'.encode()
        if is_read:
            assert "user" in json_members.members(body, WANTED)
            continue
        with pytest.raises(UnreadableBody) as problem:
            json_members.members(body, WANTED)
        assert problem.value.state is UserState.TOO_COMPLEX


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, MAX_DEPTH + 2])
@pytest.mark.parametrize("outer", ["{", "["])
@pytest.mark.parametrize("bushes", [0, 200, 300, 1000])
def test_the_depth_beside_many_bushes(depth: int, outer: str, bushes: int) -> None:
    """A chain as deep as JSON may nest is known beside what makes the rest of it shallow."""
    opening, closing = {"{": ('{"a":[', "]}"), "[": ('[{"a":', "}]")}[outer]
    pairs, odd = divmod(depth - 2, 2)
    chain = opening * pairs + "{}" * odd + ("" if odd or outer == "{" else "0") + closing * pairs
    bush = '[{"a":[{},{},{},{}]}],'
    body = f'{{"user": "a", "x": [{bush * bushes}{chain}]}}'
    if depth <= MAX_DEPTH:
        assert actual(body) == {"user": [("user", "a")]}
        return
    with pytest.raises(UnreadableBody) as problem:
        json_members.members(body.encode(), WANTED)
    assert problem.value.state is UserState.TOO_COMPLEX


@pytest.mark.parametrize("text", ['"', "\\", '\\"', "\n", "x"])
def test_words_and_escapes_beside_brackets(text: str) -> None:
    """What stands between brackets, or is escaped in a string, does not count as one of them."""
    string = json.dumps(text)
    nested = "[null,true,false," * (MAX_DEPTH - 1) + "0" + "]" * (MAX_DEPTH - 1)
    body = f'{{"x": {string}, "y": {nested}, "z": [{string}, [], {{}}], "user": {string}}}'
    assert actual(body) == {"user": [("user", text)]}


@pytest.mark.parametrize("mark", [":", "::", '\\":', "{"])
def test_many_marks_in_a_string(mark: str) -> None:
    """A member is found beside a string with more marks than a body may have members."""
    text = mark * (json_members.MAX_WALKED + 1)
    assert actual(f'{{"x": "{text}", "user": "a"}}') == {"user": [("user", "a")]}
    repeated = actual(f'{{"x": "{text}", "user": "a", "user": "b"}}')
    assert repeated == {"user": [("user", "a"), ("user", "b")]}


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_many_members(more: int) -> None:
    """A member is found beside as many as the library takes apart, and beside more."""
    others = ", ".join(f'"m{number}": 1' for number in range(json_members.MAX_WALKED - 2 + more))
    body = f'{{{others}, "user": "a", "User": "b"}}'
    assert (json_members._values(body.encode()) is None) is (more > 0)
    found = actual(body)
    assert found == {"user": [("user", "a"), ("User", "b")]}
