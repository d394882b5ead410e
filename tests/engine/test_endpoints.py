"""What a method and a path request, beside the decision tables: the canonical path, and bounds."""

import pytest

from policyd.engine import endpoints, method_override
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


@pytest.mark.parametrize(("more", "is_known"), [(0, True), (1, False)])
def test_the_longest_path(more: int, is_known: bool) -> None:
    """A path longer than MAX_PATH is not read, and counts as in scope."""
    path = "/v1/files/".ljust(MAX_PATH + more, "x")
    assert endpoints.resolve("POST", path).in_scope != is_known


def test_the_method_in_force() -> None:
    """A request that a server may take for a POST is judged as one; any other by its own method."""
    assert method_override.in_force("PUT", [("X-HTTP-Method", "post")], "") == "POST"
    assert method_override.in_force("PUT", [], "") == "PUT"
