"""OpenID AuthZEN's Authorization API 1.0: evaluation, evaluations and the discovery document."""

import asyncio
import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import examples
from tests.support.raw_http import NO_USER, Response, ask

Json = dict[str, Any]
JSON = ("Content-Type", "application/json")
PATH = "/v1/chat/completions"


def about(key: str, path: str = PATH, method: str = "POST", **context: object) -> Json:
    """An evaluation."""
    return {
        "subject": {"type": "api_key", "id": key},
        "action": {"name": method},
        "resource": {"type": "path", "id": path},
        "context": context,
    }


async def post(url: str, path: str, content: object, *headers: tuple[str, str]) -> Response:
    """Send a request of the API."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return await ask(url, "POST", path, headers or [JSON], body)


async def evaluate(url: str, content: object) -> Json:
    """The decision on one evaluation."""
    response = await post(url, "/access/v1/evaluation", content)
    assert response.status == 200, response.body
    assert response.all("content-type") == ["application/json"]
    decision: Json = json.loads(response.body)
    assert isinstance(decision["decision"], bool)
    return decision


async def evaluate_all(url: str, content: object) -> list[Json]:
    """The decisions on several evaluations."""
    response = await post(url, "/access/v1/evaluations", content)
    assert response.status == 200, response.body
    answer: Json = json.loads(response.body)
    assert list(answer) == ["evaluations"]
    return list(answer["evaluations"])


# --- evaluation --------------------------------------------------------------------------------


async def test_a_denial(url: str, enforcing: str) -> None:
    """A decision of false comes with the reasons, and the HTTP response for the client."""
    decision = await evaluate(url, about(enforcing, has_user=False))
    assert decision["decision"] is False
    context = decision["context"]
    assert context["flags"] == ["policy_enforce_user_ids"]
    assert context["denial"]["status"] == 422
    assert context["denial"]["body"].encode() == NO_USER
    assert [header["name"] for header in context["denial"]["headers"]] == [
        "Access-Control-Allow-Headers",
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Methods",
        "Content-Type",
    ]
    assert "the field user is absent" in context["reason_admin"]["422"]
    assert context["reason_user"]["422"].startswith("Usage Panda: Config set to block")


async def test_an_allowed_request(url: str, enforcing: str) -> None:
    """A decision of true comes with its ID and the path to send upstream."""
    decision = await evaluate(url, about(enforcing, "/v1//%63hat/completions", user="u-1"))
    assert decision["decision"] is True
    assert decision["context"]["upstream_path"] == PATH
    assert len(decision["context"]["decision_id"]) == 32


@pytest.mark.parametrize(
    ("context", "decision"),
    [
        ({"has_user": True}, True),
        ({"user": "u-1"}, True),
        ({"user": " "}, False),
        ({"user": "u-1", "has_user": False}, False),
        ({"safety_identifier": "u-1"}, True),
        ({"time": "2026-11-25T10:00:00Z"}, False),
        ({"has_user": False, "headers": {"X-UsagePanda-Enforce-User-IDs": "false"}}, True),
        ({"has_user": False,
          "headers": {"x-usagepanda-enforce-user-ids": ["false", "true"]}}, False),
    ],
)  # fmt: skip
async def test_contexts(url: str, enforcing: str, context: Json, decision: bool) -> None:
    """The context describes the user. An evaluation without one is never allowed."""
    assert (await evaluate(url, about(enforcing, **context)))["decision"] is decision


@pytest.mark.parametrize(
    ("path", "headers", "decision"),
    [
        (PATH, {}, True),
        (PATH, {"X-HTTP-Method-Override": "POST"}, False),
        (PATH, {"x-method-override": ["GET", "post"]}, False),
        (PATH, {"Content-Type": "multipart/form-data; boundary=x"}, False),
        (PATH + "?_method=POST", {}, False),
        ("/v1/models?_method=POST", {"X-HTTP-Method": "POST"}, True),
    ],
)
async def test_overridden_methods(
    url: str, enforcing: str, path: str, headers: Json, decision: bool
) -> None:
    """A request that the upstream may take for a POST is judged as one."""
    asked = about(enforcing, path, "PUT", has_user=False, headers=headers)
    assert (await evaluate(url, asked))["decision"] is decision


async def test_out_of_scope(url: str, enforcing: str) -> None:
    """Other methods and paths are allowed, with a valid key."""
    for method, path in [("GET", PATH), ("POST", "/v1/files")]:
        assert (await evaluate(url, about(enforcing, path, method)))["decision"] is True
        denied = await evaluate(url, about("up-unknown", path, method))
        assert denied["decision"] is False
        assert denied["context"]["denial"]["status"] == 403


@pytest.mark.parametrize(
    ("entity", "name", "value"),
    [
        ("subject", "type", "user"),
        ("resource", "type", "record"),
        ("resource", "id", "record-1"),
        ("action", "name", "can_read"),
        ("action", "name", ""),
        ("subject", "id", ""),
    ],
)
async def test_what_policyd_does_not_decide_about(
    url: str, enforcing: str, entity: str, name: str, value: str
) -> None:
    """A well-formed evaluation of something else is answered with false, never with true."""
    asked = about(enforcing, has_user=True)
    asked[entity][name] = value
    assert (await evaluate(url, asked))["decision"] is False


async def test_unknown_members(url: str, enforcing: str) -> None:
    """Unknown members are ignored."""
    asked: Json = about(enforcing, has_user=True, more={"a": [1]}) | {"future": {"nested": True}}
    asked["subject"]["properties"] = {"department": "Sales", "ip_address": "192.0.2.1"}
    asked["action"]["properties"] = {"method": "GET"}
    asked["resource"]["properties"] = {"model": "m", "owner": None}
    asked["resource"]["properties"] |= {"token_limit": 10**30, "choices": -(10**30)}
    assert (await evaluate(url, asked))["decision"] is True


def without(asked: Json, *path: str) -> Json:
    """`asked` without one of its members."""
    copy = deepcopy(asked)
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


WHOLE = about("up-1", has_user=True)
MALFORMED: list[object] = [
    b"",
    b"{",
    b"\xff",
    b"[]",
    b"null",
    b'{"subject":' + b"[" * 100_000,
    b'{"subject": NaN}',
    json.dumps(WHOLE).encode().replace(b"POST", b"\\ud800"),
    json.dumps(WHOLE).encode("utf-16"),
    b"\xef\xbb\xbf" + json.dumps(WHOLE).encode(),
    WHOLE | {"subject": None},
    WHOLE | {"action": None},
    WHOLE | {"resource": None},
    WHOLE | {"subject": {"type": "api_key", "id": None}},
    WHOLE | {"action": {"name": None}},
    WHOLE | {"subject": WHOLE["subject"] | {"properties": "Sales"}},
    WHOLE | {"resource": WHOLE["resource"] | {"properties": {"model": 5}}},
    WHOLE | {"context": {"headers": {"a": None}}},
    WHOLE | {"context": {"headers": []}},
    without(WHOLE, "subject"),
    without(WHOLE, "action"),
    without(WHOLE, "resource"),
    without(WHOLE, "subject", "type"),
    without(WHOLE, "subject", "id"),
    without(WHOLE, "action", "name"),
    without(WHOLE, "resource", "type"),
    without(WHOLE, "resource", "id"),
    WHOLE | {"subject": "alice"},
    WHOLE | {"action": {"name": 123}},
    WHOLE | {"context": []},
    WHOLE | {"context": {"has_user": "yes"}},
    WHOLE | {"context": {"user": 5}},
    WHOLE | {"context": {"headers": {"a": 1}}},
]


@pytest.mark.parametrize("content", MALFORMED)
@pytest.mark.parametrize("path", ["/access/v1/evaluation", "/access/v1/evaluations"])
async def test_malformed_requests(url: str, path: str, content: object) -> None:
    """Malformed requests are answered 400 with the reason, as the standard requires."""
    response = await post(url, path, content)
    assert response.status == 400
    assert response.body


async def test_other_content_types(url: str, enforcing: str) -> None:
    """Any content type but application/json is answered 400."""
    asked = about(enforcing, has_user=True)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        response = await post(url, "/access/v1/evaluation", asked, ("Content-Type", kind))
        assert response.status == 400
    for kind in ("Application/JSON; charset=utf-8", "application/json ;profile=x"):
        given = ("Content-Type", kind)
        assert (await post(url, "/access/v1/evaluation", asked, given)).status == 200
    twice = (JSON, ("Content-Type", "text/plain"))
    assert (await post(url, "/access/v1/evaluation", asked, *twice)).status == 400
    for coding, status in (("identity", 200), ("gzip", 400), ("br", 400)):
        given = ("Content-Encoding", coding)
        assert (await post(url, "/access/v1/evaluation", asked, JSON, given)).status == status


async def test_request_ids(url: str, enforcing: str) -> None:
    """X-Request-ID is returned unchanged, with errors too."""
    name = ("X-Request-ID", "bfe9eb29-ab87")
    for content, status in ((about(enforcing, has_user=True), 200), (b"", 400)):
        response = await post(url, "/access/v1/evaluation", content, JSON, name)
        assert response.status == status
        assert response.all("x-request-id") == [name[1]]
    response = await post(url, "/access/v1/evaluation", about(enforcing))
    assert response.all("x-request-id") == []


async def test_other_methods(url: str) -> None:
    """Only POST evaluates."""
    response = await ask(url, "GET", "/access/v1/evaluation")
    assert (response.status, response.all("allow")) == (405, ["POST"])


async def test_a_trailing_slash(url: str, enforcing: str) -> None:
    """A trailing slash is ignored; any longer path is another endpoint."""
    asked = about(enforcing, has_user=True)
    for path in ("/access/v1/evaluation/", "/access/v1/evaluations/"):
        response = await post(url, path, asked)
        assert (response.status, json.loads(response.body)["decision"]) == (200, True)
        assert (await post(url, path + "/", asked)).status == 404
        assert (await post(url, path + "x", asked)).status == 404
    response = await ask(url, "GET", "/.well-known/authzen-configuration/")
    assert json.loads(response.body)["policy_decision_point"] == "http://gateway.test"
    assert (await post(url, "/v1/evaluate/", {"key": enforcing, "hasUser": True})).status == 200


NOTHING = [
    ("subject", "properties"),
    ("subject", "properties", "ip_address"),
    ("action", "properties"),
    ("resource", "properties"),
    ("resource", "properties", "model"),
    ("context", "headers"),
    ("context", "safety_identifier"),
    ("context", "user"),
    ("context", "request_id"),
    ("context", "trace_id"),
    ("context", "user_agent"),
    ("context", "organization"),
    ("options",),
    ("options", "evaluations_semantic"),
    ("evaluations",),
]


@pytest.mark.parametrize("where", NOTHING, ids=".".join)
@pytest.mark.parametrize("path", ["/access/v1/evaluation", "/access/v1/evaluations"])
async def test_null(url: str, enforcing: str, path: str, where: tuple[str, ...]) -> None:
    """Null for an optional member means that it is not there."""
    asked: Json = about(enforcing, has_user=True)
    inner = asked
    for name in where[:-1]:
        inner = inner.setdefault(name, {})
    inner[where[-1]] = None
    response = await post(url, path, asked)
    assert (response.status, json.loads(response.body)["decision"]) == (200, True)


async def test_no_context(url: str, enforcing: str) -> None:
    """A null context tells nothing of the user, so where a user is needed nothing is allowed."""
    for more in ({"context": None}, {"context": {"has_user": None}}, {"context": {"user": None}}):
        decision = await evaluate(url, about(enforcing) | more)
        assert decision["decision"] is False
        assert decision["context"]["error"]["status"] == 400
        out_of_scope = await evaluate(url, about(enforcing, method="GET") | more)
        assert out_of_scope["decision"] is True


async def test_too_large(url: str, enforcing: str) -> None:
    """A request over --max-message is answered 413."""
    asked = about(enforcing, user="x" * 5 * 2**20)
    assert (await post(url, "/access/v1/evaluation", asked)).status == 413


# --- evaluations -------------------------------------------------------------------------------


async def test_defaults(url: str, enforcing: str) -> None:
    """The top level fills in what an evaluation lacks, and an evaluation's own entity wins."""
    asked = about(enforcing, user="u-1") | {
        "evaluations": [
            {},
            {"context": {"has_user": False}},
            {"action": {"name": "GET"}, "context": {}},
            {"resource": {"id": "/v1/embeddings"}},
            {"subject": {"type": "api_key", "id": "up-unknown"}},
        ]
    }
    decisions = await evaluate_all(url, asked)
    assert [one["decision"] for one in decisions] == [True, False, True, True, False]
    assert decisions[3]["context"]["upstream_path"] == "/v1/embeddings"


async def test_no_defaults(url: str, enforcing: str) -> None:
    """Each evaluation may give everything itself."""
    items = [about(enforcing, has_user=has_user) for has_user in (False, True)]
    decisions = await evaluate_all(url, {"evaluations": items})
    assert [one["decision"] for one in decisions] == [False, True]


async def test_one_that_cannot_be_evaluated(url: str, enforcing: str) -> None:
    """A malformed evaluation is decided with false, with the error in its context.

    The others are decided as always.
    """
    asked = without(about(enforcing, has_user=True), "resource")
    resource = {"type": "path", "id": PATH}
    bad = [{}, {"resource": 5}, {"resource": None}, 1, None, "x", [], True]
    bad += [{"resource": {"type": "", "id": ""}}, {"resource": resource, "context": 5}]
    bad += [{"resource": resource, "context": {"has_user": "yes"}}, {"resource": {"id": 5}}]
    items = [{"resource": resource}, *bad, {"resource": resource, "context": None}]
    decisions = await evaluate_all(url, asked | {"evaluations": items})
    assert [decisions.pop(place)["decision"] for place in (-1, 0)] == [True, True]
    assert len(decisions) == len(bad)
    assert not any(one["decision"] for one in decisions)
    assert all(one["context"]["error"]["status"] == 400 for one in decisions)


async def test_null_defaults(url: str, enforcing: str) -> None:
    """Null at the top level is no default, and null in an evaluation leaves the default."""
    whole = about(enforcing, has_user=True)
    nothing = dict.fromkeys(("subject", "action", "resource", "context", "options"))
    asked = nothing | {"evaluations": [whole, {}]}
    assert [one["decision"] for one in await evaluate_all(url, asked)] == [True, False]
    asked = whole | {"evaluations": [nothing]}
    assert [one["decision"] for one in await evaluate_all(url, asked)] == [True]


async def test_a_bad_one_is_a_denial(url: str, enforcing: str) -> None:
    """A malformed evaluation ends a batch that ends at the first denial, and none that ends at the
    first permit.
    """
    asked = about(enforcing, has_user=True) | {"evaluations": [1, {}, {}]}
    for semantic, wanted in (
        ("deny_on_first_deny", [False]),
        ("permit_on_first_permit", [False, True]),
    ):
        options = {"options": {"evaluations_semantic": semantic}}
        assert [one["decision"] for one in await evaluate_all(url, asked | options)] == wanted


@pytest.mark.parametrize(
    ("semantic", "wanted"),
    [
        ("execute_all", [True, False, True]),
        ("deny_on_first_deny", [True, False]),
        ("permit_on_first_permit", [True]),
    ],
)
async def test_semantics(url: str, enforcing: str, semantic: str, wanted: list[bool]) -> None:
    """The evaluations end where the semantic requires."""
    items = [{"context": {"has_user": has_user}} for has_user in (True, False, True)]
    options = {"evaluations_semantic": semantic, "another": 1}
    asked = about(enforcing) | {"evaluations": items, "options": options}
    assert [one["decision"] for one in await evaluate_all(url, asked)] == wanted


async def test_no_evaluations(url: str, enforcing: str) -> None:
    """Without evaluations the request is a single one."""
    without: list[dict[str, Any]] = [{}, {"evaluations": []}]
    for more in without:
        response = await post(url, "/access/v1/evaluations", about(enforcing, has_user=True) | more)
        assert json.loads(response.body)["decision"] is True


@pytest.mark.parametrize(
    "more",
    [
        {"evaluations": {}},
        {"evaluations": "x"},
        {"evaluations": [{}], "subject": 5},
        {"evaluations": [{}], "context": "x"},
        {"evaluations": [{}], "options": {"evaluations_semantic": ""}},
        {"evaluations": [{}], "options": {"evaluations_semantic": 5}},
        {"evaluations": [{}], "options": {"evaluations_semantic": ["execute_all"]}},
        {"evaluations": [{}] * 1001},
        {"evaluations": [{}], "options": {"evaluations_semantic": "any"}},
        {"evaluations": [{}], "options": []},
    ],
)
async def test_malformed_evaluations(url: str, enforcing: str, more: Json) -> None:
    """An error of the whole request is answered 400."""
    asked = about(enforcing, has_user=True) | more
    assert (await post(url, "/access/v1/evaluations", asked)).status == 400


# --- discovery ---------------------------------------------------------------------------------


async def test_the_discovery_document(url: str, enforcing: str) -> None:
    """The document names the endpoints by the URL of its own request, and they answer there."""
    response = await ask(url, "GET", "/.well-known/authzen-configuration")
    assert (response.status, response.all("content-type")) == (200, ["application/json"])
    assert json.loads(response.body) == {
        "policy_decision_point": "http://gateway.test",
        "access_evaluation_endpoint": "http://gateway.test/access/v1/evaluation",
        "access_evaluations_endpoint": "http://gateway.test/access/v1/evaluations",
    }
    behind_tls = ("X-Forwarded-Proto", "https")
    response = await ask(url, "GET", "/.well-known/authzen-configuration", [behind_tls])
    assert json.loads(response.body)["policy_decision_point"] == "https://gateway.test"
    response = await ask(url, "POST", "/.well-known/authzen-configuration")
    assert response.status == 405


# --- any request -------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
USERLESS = st.dictionaries(
    st.sampled_from(["safety_identifiers", "headers", "request_id", "trace_id", "users", "User"]),
    VALUES | st.sampled_from(["", "u-1"]),
) | st.sampled_from([{}, {"has_user": False}, {"user": ""}, {"user": "\u200b"}, {"user": None}])
ENTITIES = st.fixed_dictionaries(
    {},
    optional={
        "subject": VALUES,
        "action": VALUES | st.just({"name": "post"}),
        "resource": VALUES | st.just({"id": "/openai/deployments/a/chat/completions"}),
        "context": USERLESS | VALUES,
        "more": VALUES,
    },
)
FUZZ = settings(
    max_examples=examples.times(1.5),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(context=USERLESS, items=st.lists(ENTITIES, max_size=4), options=VALUES)
def test_no_request_without_user_is_allowed(
    url: str, enforcing: str, context: Json, items: list[Json], options: object
) -> None:
    """Where the key enforces, no request without a user is allowed, whatever the evaluations hold,
    and nothing crashes policyd.
    """
    asked = about(enforcing) | {"context": context, "evaluations": items}
    if isinstance(options, dict):
        asked["options"] = options
    response = asyncio.run(post(url, "/access/v1/evaluations", asked))
    assert response.status in (200, 400)
    if response.status == 200:
        answer = json.loads(response.body)
        decisions = answer.get("evaluations", [answer])
        assert not any(one["decision"] for one in decisions)
