"""What holds for every path, tested with hypothesis."""

import re
import sys
import time
import unicodedata
from typing import NamedTuple
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.upstream_path import UpstreamPath
from policyd.engine import endpoints
from policyd.engine.endpoints import ENDPOINTS
from tests.support import examples

NAME = "{session_id}"
"""The word of an endpoint's path that stands for any one word."""


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, str]:
    """A path in scope, and another spelling of it."""
    prefix = draw(st.sampled_from(["", "/v1", "/openai/v1", "/openai/deployments"]))
    name = draw(
        st.sampled_from(["live_1", "Live-%41", "accept", "sessions", "..x", "{session_id}"])
    )
    words = (prefix + draw(st.sampled_from(sorted(ENDPOINTS)))).strip("/").split("/")
    path = "".join("/" + (quote(name, safe="%") if word == NAME else word) for word in words)
    words = [name if word == NAME else draw(_spelt(word)) for word in words]
    slash = st.sampled_from(["/", "//", "/./", "/x/../", "\\", "%2F", "%5c", "/%2e/", "/;p=1/"])
    spelt = draw(slash) + "".join(word + draw(slash) for word in words[:-1]) + words[-1]
    ends = st.sampled_from(["", "/", "//", "%20", "%00", "%0A", ";v=1", "/.", "/x/..", "%09/%20"])
    return path, spelt + "".join(draw(st.lists(ends, max_size=3)))


def _spelt(word: str) -> st.SearchStrategy[str]:
    letters = [
        st.sampled_from([letter, letter.upper(), f"%{ord(letter):02x}", f"%{ord(letter):02X}"])
        for letter in word
    ]
    return st.tuples(*letters).map("".join)


@given(spellings())
def test_no_spelling_of_a_path_escapes(paths: tuple[str, str]) -> None:
    """Every spelling of a path in scope is in scope, and one path goes upstream for all of them."""
    path, spelt = paths
    target = endpoints.resolve("POST", spelt)
    assert target == endpoints.resolve("POST", path)
    assert target.in_scope
    assert target.path == path


def test_what_is_loose_at_the_end() -> None:
    """White space or a control character at a path's end does not change the path.

    Servers that drop characters there drop only these.
    """
    loose = [one for one in map(chr, range(sys.maxunicode + 1)) if _is_loose(one)]
    assert {"\0", " ", "\x85", "\xa0", "\u2003", "\u2028", "\u3000", "\ufeff"} <= set(loose)
    for one in loose:
        target = endpoints.resolve("POST", "/v1/chat/completions" + quote(one))
        assert (target.in_scope, target.path) == (True, "/v1/chat/completions"), hex(ord(one))


def _is_loose(one: str) -> bool:
    return one.isspace() or unicodedata.category(one) == "Cc" or one == "\ufeff"


@given(spellings(), st.sampled_from(["GPT-4o", "a%2Fb", "%47PT", "x%20y", "a/B", "100%25", "V1"]))
def test_names_stay_as_they_came(paths: tuple[str, str], name: str) -> None:
    """Whatever the spelling around it, a deployment's name goes upstream unchanged."""
    path, spelt = paths
    endpoint = endpoints.resolve("POST", path).endpoint
    target = endpoints.resolve("POST", f"/OpenAI//Deployments/{name}/{spelt}")
    assert target.in_scope
    assert target.path.startswith(f"/openai/deployments/{name}/")
    assert target.endpoint == endpoint


SIZES = (1000, 16_000)
"""Characters of a path, both more than are kept in a cache."""
_PIECES = """
/ / / / / chat completions images generations embeddings x V1 %63hat
.. .. . %2e%2e %2E. %252e%252e %2F %5C \\ %252F %255c
;p %3B %253B ? %3F %23 %253F %20 %00 %09 %2500 %25 %
ch%09at comple%250Ations .%0D. %EF%BB%BF %0A
/chat/completions /images/ /generations /embeddings /.. /x/.. //..
/live/sessions /live/sessions/ /live/sessions/x /accept accept /v1/messages messages /realtime/calls
"""
hard_paths = st.lists(st.sampled_from(_PIECES.split()), max_size=9).map(
    lambda parts: "/" + "".join(parts)
)
any_paths = hard_paths | st.text() | st.binary().map(quote)


@given(any_paths)
def test_the_canonical_path_is_canonical(path: str) -> None:
    """canonical_path() is total, and doing it twice changes nothing."""
    canonical = endpoints.canonical_path(path)
    assert canonical.startswith("/")
    assert canonical.isascii()
    assert endpoints.canonical_path(canonical) == canonical


@given(any_paths)
def test_what_goes_upstream_is_judged_alike(path: str) -> None:
    """The canonical path of a request in scope, judged again, gives the same verdict."""
    target = endpoints.resolve("POST", path)
    if target.path:
        assert target == endpoints.resolve("POST", target.path)
        assert target.path == endpoints.canonical_path(path.partition("?")[0].partition("#")[0])


PATTERNS = {
    path: re.compile(re.escape(path).replace(re.escape(NAME), "[^/]+") + r"\Z")
    for path in ENDPOINTS
}


class Reader(NamedTuple):
    """How a server reads a path. The steps named first come before the decoding."""

    decodings: int
    resolves_first: bool
    drops_parameters: bool
    drops_parameters_first: bool
    splits_at_backslash: bool
    keeps_empty: bool
    drops_breaks: bool
    splits_first: bool
    """Whether a slash that is encoded stays within its name."""
    cuts: str
    """The characters that end the path once it is decoded."""

    def endpoint(self, path: str) -> str | None:
        """The endpoint that this reader takes the path to end in."""
        if self.drops_parameters_first:
            path = "/".join(part.partition(";")[0] for part in path.split("/"))
        if self.resolves_first:
            path = "/".join(self._resolved(path))
        for _ in range(self.decodings):
            parts = path.split("/") if self.splits_first else [path]
            inner = "\ue000" if self.splits_first else "/"
            path = "/".join(unquote(part, "latin-1").replace("/", inner) for part in parts)
        if self.drops_breaks:
            path = re.sub(r"[\t\r\n]", "", path)
        for mark in self.cuts:
            path = path.partition(mark)[0]
        found = "/".join(self._resolved(path)).casefold().rstrip("/ \t\0")
        found = found.removesuffix("\xef\xbb\xbf")
        ends = (one for one in ENDPOINTS if PATTERNS[one].search("/" + found))
        return max(ends, key=len, default=None)

    def _resolved(self, path: str) -> list[str]:
        kept: list[str] = []
        for part in re.split(r"[/\\]" if self.splits_at_backslash else "/", path):
            name = part.partition(";")[0] if self.drops_parameters else part
            if name == "..":
                del kept[-1:]
            elif name != "." and (name or self.keeps_empty):
                kept.append(name)
        return kept


flags = st.booleans()
readers = st.builds(
    *(Reader, st.integers(0, 4), flags, flags, flags, flags, flags, flags, flags),
    st.sampled_from(["", "?", "#", "?#", ";", "\0", " "]),
)


@settings(max_examples=examples.times(20))
@given(hard_paths, readers)
def test_no_server_reads_another_endpoint(path: str, reader: Reader) -> None:
    """What goes upstream out of scope is no endpoint to any server, and what goes upstream in scope
    is the endpoint that was judged. What is in scope for some keys is out of scope for others.
    """
    came = path.partition("?")[0]
    target = endpoints.resolve("POST", came)
    if not target.in_scope:
        assert reader.endpoint(came) is None
    if target.endpoint and target.endpoint.only_for:
        assert reader.endpoint(came) in (None, "/v1/messages")
    if target.in_scope and not target.is_ambiguous:
        read = reader.endpoint(target.path)
        assert read is None or ENDPOINTS[read] == target.endpoint


@settings(max_examples=examples.times(10))
@given(
    st.sampled_from(["", "/openai", "/V1/Images", "/v1/chat", "/Team%20A/v1", "/v1/embeddings"]),
    hard_paths,
    readers,
)
@example(
    "/V1/Images",
    "/../images/embeddings",
    Reader(0, False, False, False, False, False, False, False, ""),
)
def test_what_goes_behind_a_prefix_was_judged(prefix: str, path: str, reader: Reader) -> None:
    """The judged path goes upstream behind any prefix, which stays as the operator wrote it."""
    own = UpstreamPath(prefix)
    absolute = own.absolute(path.partition("?")[0])
    target = endpoints.resolve("POST", absolute)
    sent = own.restored(target.path or absolute)
    if sent is None or target.is_ambiguous:
        return
    assert sent.startswith(prefix)
    again = endpoints.resolve("POST", sent)
    assert again._replace(path="") == target._replace(path="")
    # The letter case of the prefix is the operator's, and not that of a client that climbed out of
    # it and named it anew.
    assert again.path.lower() == target.path.lower()
    assert again.path[len(prefix) :] == target.path[len(prefix) :]
    assert target.in_scope or reader.endpoint(sent) is None
    assert not prefix or ".." not in unquote(unquote(sent[len(prefix) :])).split("/")


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["a/", "completions/", "%25", "%2525", "%2F", "\\", "../", "x/../", ";p/", "%3F", "%20"]
)
def test_long_paths_are_read_in_linear_time(part: str) -> None:
    """A path sixteen times as long takes no more than some sixteen times as long to read."""
    short, long = (_seconds(f"/v1/embeddings%3F/{part * (size // len(part))}") for size in SIZES)
    assert long < 16 * 4 * short


def _seconds(path: str) -> float:
    def timed() -> float:
        began = time.thread_time()
        endpoints.resolve("POST", path)
        return time.thread_time() - began

    return min(timed() for _ in range(20))
