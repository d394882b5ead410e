"""What a method and a path request, beside the decision tables: the canonical path, and bounds."""

import pytest

from policyd.engine import endpoints, method_override, paths
from policyd.engine.endpoints import MAX_PATH
from policyd.engine.places import (
    BODY_PLACES,
    END_USER_ID,
    IDENTIFIERS,
    METADATA_USER_ID,
    SAFETY_IDENTIFIER,
    USER,
    accept_problem,
    can_accept,
)
from policyd.engine.settings import KeySettings

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
    # So is a session's name between the API's own words.
    "/V1/Live//Sessions/Live_%41/Accept;x": "/v1/live/sessions/Live_%41/accept",
    "/live/sessions/x%2F..%2FLive_1/accept": "/live/sessions/Live_1/accept",
    "/live/sessions/live/sessions/a/accept": "/live/sessions/live/sessions/a/accept",
    "/live/sessions/{session_id}/accept": "/live/sessions/%7Bsession_id%7D/accept",
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


def name_of(path: str) -> str:
    """The name of a test: the path, cut, and without what pytest would escape."""
    return ascii(path[:40])[1:-1].replace("\\", "%")


@pytest.mark.parametrize("path", CANONICAL, ids=name_of)
def test_the_path_that_goes_upstream(path: str) -> None:
    """The path that goes upstream is the one that was judged, and is canonical itself."""
    found = endpoints.resolve("POST", path)
    assert (found.path, found.is_ambiguous) == (CANONICAL[path], False)
    assert endpoints.canonical_path(path) == CANONICAL[path]
    assert endpoints.resolve("POST", found.path) == found


NAMES = {
    "/live/sessions/a/b/accept": "out of scope",
    "/live/sessions//accept": "out of scope",
    "/live/sessions/accept": "out of scope",
    "/realtime/calls/a/accept": "out of scope",
    # A slash that is hidden elsewhere makes no name of what is none.
    "/a%2Fb/live/sessions/accept": "out of scope",
    "/a%2Fb/sessions/c/accept": "out of scope",
    "/live/sessions/a%2Fb/refuse": "out of scope",
    "/a%2Fb/sessions": "out of scope",
    # A server that splits a path before it decodes that sees one name here.
    "/live/sessions/a%2Fb/accept": "ambiguous",
    "/live/sessions/a%5cb/accept": "ambiguous",
    "/live/sessions/a\\b/accept": "ambiguous",
    "/live/sessions/a%252Fb/accept": "ambiguous",
    "/live/sessions/a%3Fb/accept": "ambiguous",
    "/live/sessions/%3Fa/accept": "ambiguous",
    "/live/sessions/%252e%252e/accept": "ambiguous",
    "/a%3Fb/live/sessions/a/accept": "in scope",
}


@pytest.mark.parametrize("path", NAMES)
def test_a_name_in_the_middle(path: str) -> None:
    """A session's name is one word: what a server may read as one is ambiguous."""
    found = endpoints.resolve("POST", path)
    verdict = "ambiguous" if found.is_ambiguous else "in scope"
    assert (verdict if found.in_scope else "out of scope") == NAMES[path]


MODELS = {
    "/openai/deployments/My-GPT/chat/completions": "My-GPT",
    "/OpenAI/Deployments/a%2Fb/chat/completions": "a/b",
    "/openai/deployments/gpt-4/extensions/chat/completions": "gpt-4",
    "/openai/deployments/gpt%204;x/v1/embeddings": "gpt 4",
    "/openai/deployments/v1/embeddings": "v1",
    "/v1/engines/davinci/completions": "davinci",
    "/v1/engines/%ff/completions": "?",
    "/v1/completions": "",
    "/openai/deployments/embeddings": "",
    "/v1/engines/" + "x" * 300 + "/completions": "x" * 256,
}


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_the_model_in_a_path(path: str) -> None:
    """A path before an endpoint may name a deployment or an engine."""
    assert endpoints.resolve("POST", path).model == MODELS[path]


UNCLEAR = (
    "/openai/deployments/gpt%252D4/chat/completions",
    "/openai/deployments/gpt-4%20/chat/completions",
    "/openai/deployments/gpt-4%00/chat/completions",
    "/openai/deployments/gpt-4%3Bx/chat/completions",
    "/openai/deployments/gpt-4%3Fx/chat/completions",
    "/openai/deployments/x/..%EF%BB%BF/chat/completions",
    "/openai/deployments/x/deployments/gpt-4/chat/completions",
    "/v1/engines/x/openai/deployments/gpt-4/chat/completions",
    "/v1/engines/" + "x" * 257 + "/completions",
)
CLEAR = (
    "/openai/deployments/gpt%2D4/chat/completions",
    "/openai/deployments/gpt-4;x/chat/completions",
    "/v1/engines/meta/llama%2Fbig/v1/completions",
    "/v1/engines/" + "x" * 256 + "/completions",
    "/v1/completions",
)


@pytest.mark.parametrize("path", UNCLEAR + CLEAR, ids=name_of)
def test_a_model_that_servers_read_differently(path: str) -> None:
    """A name that a server may decode twice, end early or find elsewhere is any model's."""
    assert endpoints.resolve("POST", path).has_unclear_model is (path in UNCLEAR)


MESSAGES = {
    "/v1/messages": "message",
    "/Anthropic/V1/messages/": "message",
    "/v1/%256dessages": "message, ambiguous",
    "/v1/threads%3Fx/messages": "message, ambiguous",
    # Out of scope it would go upstream as it came, and be another endpoint to some server.
    "/v1/chat/completions%3F/v1/messages": "ambiguous",
    "/v1/chat/completions/..%252f../v1/messages": "ambiguous",
    "/v1/threads/x/messages": "",
    "/v1/messages/count_tokens": "",
    "/messages": "",
}


@pytest.mark.parametrize("path", MESSAGES)
def test_what_is_in_scope_for_some_keys(path: str) -> None:
    """A path of Anthropic's messages is in scope for keys that accept its place; one that may be
    another endpoint as well, for all keys.
    """
    found = endpoints.resolve("POST", path)
    operation = [found.endpoint.operation] if found.endpoint else []
    assert ", ".join(operation + ["ambiguous"] * found.is_ambiguous) == MESSAGES[path]
    assert found.in_scope == bool(MESSAGES[path])
    if found.endpoint:
        assert not found.endpoint.is_for(IDENTIFIERS)
        assert found.endpoint.is_for((USER, METADATA_USER_ID))


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions/%252e%252e/embeddings", "embedding"),
        ("/v1/%2563hat/completions", "completion"),
        ("/v1/chat/completions%3Fx/embeddings", "embedding"),
        ("/v1/responses%253F/v1/embeddings", "embedding"),
    ],
)
def test_a_path_with_two_readings(path: str, operation: str) -> None:
    """A path that servers may read as two endpoints has no canonical form to go upstream in."""
    found = endpoints.resolve("POST", path)
    assert found.endpoint is not None
    assert (found.endpoint.operation, found.path) == (operation, "")
    assert found.is_ambiguous


def test_a_realtime_call() -> None:
    """What the tables of realtime and live say: a header or the session may name the end user."""
    calls = {path: one for path, one in endpoints.ENDPOINTS.items() if "realtime" in path}
    assert {one.safety_header for one in calls.values()} == {True}
    assert [path for path, one in calls.items() if one.takes_model] == ["/realtime/sessions"]
    live = [path for path, one in endpoints.ENDPOINTS.items() if one.safety_in_session]
    assert live == ["/live/sessions", "/live/sessions/{session_id}/accept"]


def test_endpoints_without_an_accepted_place() -> None:
    """without_place() names the operations that have none of the places that a key accepts."""
    assert endpoints.without_place(IDENTIFIERS) == ()
    assert endpoints.without_place(("header:x-user", USER)) == ()
    successor = ("completion", "image_variation", "embedding", "chatkit_session")
    assert endpoints.without_place((SAFETY_IDENTIFIER,)) == successor
    assert "message" not in endpoints.without_place((USER,))
    operations = {one.operation for one in endpoints.ENDPOINTS.values()}
    assert set(endpoints.without_place((METADATA_USER_ID,))) == operations - {"message"}
    azure = operations - {"message", "chat_completion"}
    assert set(endpoints.without_place((END_USER_ID,))) == azure


@pytest.mark.parametrize("pattern", endpoints.ENDPOINTS)
def test_names_in_endpoints(pattern: str) -> None:
    """Any word fits a name in an endpoint's path, and stays as it came."""
    words = pattern.split("/")
    named = [at for at, word in enumerate(words) if word.strip("{}") != word]
    assert len(named) <= 1
    assert len(words) - 1 not in named
    path = "/".join("Any-%41" if at in named else word for at, word in enumerate(words))
    target = endpoints.resolve("POST", path)
    assert (target.endpoint, target.path) == (endpoints.ENDPOINTS[pattern], path)


@pytest.mark.parametrize("path", ["", "/", "//", "/..", "/a/../.", "/%20"])
def test_a_path_without_a_name(path: str) -> None:
    """A path without any name is read as a slash."""
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


def test_headers_that_override_the_method() -> None:
    """Three headers do, each with a dash or an underscore between any two of its words."""
    spelt = {
        *("x-http-method", "x-http_method", "x_http-method", "x_http_method"),
        *("x-method-override", "x-method_override", "x_method-override", "x_method_override"),
        *("x-http-method-override", "x-http-method_override", "x-http_method-override"),
        *("x-http_method_override", "x_http-method-override", "x_http-method_override"),
        *("x_http_method-override", "x_http_method_override"),
    }
    assert spelt == method_override.HEADERS
    for name in spelt:
        assert method_override.in_force("GET", [(name, "POST")], "") == "POST"


@pytest.mark.parametrize(
    "accept",
    [IDENTIFIERS, BODY_PLACES, ("header:x-user",), tuple(f"header:x-{n}" for n in range(8))],
)
def test_accepted_places(accept: tuple[str, ...]) -> None:
    """A key accepts one to eight places of a body and headers."""
    assert can_accept(accept)
    assert KeySettings("key_test", accept=accept).accept == accept


REJECTED = {
    (): "accept is empty: name at least one of user, ",
    ("user", "users"): "accept names 'users', in which no end user can stand: name user, ",
    ("x" * 81,): f"accept names '{'x' * 80}', in which no end user can stand",
    ("header:X-User",): "(a header's name in lower case)",
    ("header:",): "no end user can stand",
    ("header:" + "x" * 65,): "no end user can stand",
    ("header:x-user\n",): "no end user can stand",
    ("user", "user"): "accept names user more than once: name it once",
    tuple(f"header:x-{n}" for n in range(9)): "accept names 9 places: name at most 8",
}


@pytest.mark.parametrize(
    "accept", REJECTED, ids=lambda accept: ",".join(accept)[:30].strip() or "none"
)
def test_rejected_places(accept: tuple[str, ...]) -> None:
    """An error says which place is wrong, and which there are."""
    assert not can_accept(accept)
    assert REJECTED[accept] in accept_problem(accept)
    with pytest.raises(ValueError, match="accept "):
        KeySettings("key_test", accept=accept)
