"""What a method and a path request, beside the decision tables: the canonical path, and bounds."""

import pytest

from policyd.engine import endpoints, method_override, paths
from policyd.engine.endpoints import MAX_PATH

CANONICAL = {
    "/v1/chat/completions": "/v1/chat/completions",
    "/V1//Chat/./completions/": "/v1/chat/completions",
    # A deployment's name keeps its spelling, and its slashes too; the API's own words do not.
    "/OpenAI/Deployments/My-GPT/Chat/Completions": "/openai/deployments/My-GPT/chat/completions",
    "/openai/deployments/a%2Fb/embeddings": "/openai/deployments/a%2Fb/embeddings",
    "/openai/deployments/V1%2fOpenAI/embeddings": "/openai/deployments/V1%2fOpenAI/embeddings",
    "/a%2Fb/V1/engines/Gpt%2f4/completions": "/a%2Fb/v1/engines/Gpt%2f4/completions",
    "/openai%2Fdeployments%2fx%2Fembeddings": "/openai/deployments/x/embeddings",
    # Words before the API's own words are a name as well.
    "/Team/embeddings": "/Team/embeddings",
    "/a%2Fb%2fc/embeddings": "/a%2Fb%2fc/embeddings",
    "/X%2FOpenAI/embeddings": "/X/openai/embeddings",
    "/a%2Fv1%2Fb/embeddings": "/a/v1/b/embeddings",
    # A parameter of a segment is none of its name, and what separates segments becomes a slash.
    "/openai/deployments/A;v=1/embeddings": "/openai/deployments/A/embeddings",
    "/v1/chat%3Bx/completions": "/v1/chat/completions",
    "/a\\b/embeddings": "/a/b/embeddings",
    "/a/%2Fb/embeddings": "/a/b/embeddings",
    # A dot segment takes one name away.
    "/a/b/c/../embeddings": "/a/b/embeddings",
    "/v1/embeddings/.%20": "/v1/embeddings",
    # What is not in ASCII or not in UTF-8 is a name like any other.
    "/\u00e9%20x;y/embeddings": "/%C3%A9%20x/embeddings",
    "/\ud800/embeddings": "/%ED%A0%80/embeddings",
    "/%FF%2541/embeddings": "/%FF%2541/embeddings",
    # Longer than the paths that are cached.
    "/" + "X" * 300 + "/Embeddings": "/" + "X" * 300 + "/embeddings",
}


@pytest.mark.parametrize("path", CANONICAL, ids=lambda path: path[:40])
def test_the_path_that_goes_upstream(path: str) -> None:
    """The path that goes upstream is the one that was judged, and is canonical itself."""
    found = endpoints.resolve("POST", path)
    assert (found.path, found.is_ambiguous) == (CANONICAL[path], False)
    assert endpoints.canonical_path(path) == CANONICAL[path]
    assert endpoints.resolve("POST", found.path) == found


@pytest.mark.parametrize("path", ["", "/", "//", "/..", "/a/../.", "/%20"])
def test_a_path_without_a_name(path: str) -> None:
    """What is left of a path without any name is a slash."""
    assert endpoints.canonical_path(path) == "/"


@pytest.mark.parametrize(
    ("path", "may_climb"),
    [
        ("/a/../b", True),
        ("/a/%2e%2E/b", True),
        ("/a/%252e./b", True),
        ("/a\\..", True),
        ("/a/..;x/b", True),
        ("/a/..%EF%BB%BF/b", True),
        ("/a/.%0d./b", True),
        ("/a%09../b", True),
        ("/a%" + "25" * 8 + "2f", True),
        ("/a/b", False),
        ("/a/b..c/...", False),
        ("/a%20b", False),
        ("/a%" + "25" * 7 + "2f", False),
    ],
)
def test_what_climbs(path: str, may_climb: bool) -> None:
    """A path climbs if some reading of it holds a `..`, or if it is decoded too often to tell."""
    assert paths.climbs(path) is may_climb


@pytest.mark.parametrize(("more", "is_known"), [(0, True), (1, False)])
def test_the_longest_path(more: int, is_known: bool) -> None:
    """A path longer than MAX_PATH is not read, and counts as in scope."""
    path = "/v1/files/".ljust(MAX_PATH + more, "x")
    assert endpoints.resolve("POST", path).in_scope != is_known


def test_the_method_in_force() -> None:
    """A request that a server may take for a POST is judged as one; any other by its own method."""
    assert method_override.in_force("PUT", [("X-HTTP-Method", "post")], "") == "POST"
    assert method_override.in_force("PUT", [], "") == "PUT"
