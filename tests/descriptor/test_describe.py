"""One request, through each adapter: all give policyd the same descriptor.

The LiteLLM hook has no path and no body of the client's, so its test stands in
integrations/litellm. It calls the same describe().
"""

import gzip
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import pytest
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext

from gateway.describe import http_request
from gateway.headers import read_request
from gateway.intake import Intake
from gateway.settings import Settings
from policyd.command.address import Address
from policyd.descriptor import describe as describing
from policyd.descriptor.body import read_body
from policyd.descriptor.body_memory import AT_ONCE, Bodies
from policyd.descriptor.describe import MAX_REMARK, HttpRequest, about_key, describe
from policyd.descriptor.headers import by_name
from policyd.descriptor.identifiers import MAX_VALUE
from policyd.descriptor.pieces import Pieces
from policyd.engine import endpoints
from policyd.engine.places import SAFETY_HEADER
from policyd.engine.states import Number, NumberState
from policyd.errors import BodiesFull
from policyd.http import check
from policyd.http.request import Request
from policyd.services import ext_authz_request
from policyd.v1 import policy_pb2 as pb

CHAT = "/v1/chat/completions"
BODY = b'{"model":"m","user":"alice","safety_identifier":null,"messages":[]}'
FORM = (
    b'--B\r\nContent-Disposition: form-data; name="user"\r\n\r\nalice\r\n'
    b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
)
KEY = ("x-usagepanda-api-key", "up-1")
ADDRESS = "192.0.2.7"
LIMIT = 2**20
Pairs = Iterable[tuple[str, str]]
Message = dict[str, Any]


class Case(NamedTuple):
    """A request, and the fields of its descriptor besides method, path, address and key."""

    expected: dict[str, Any]
    headers: Pairs = ()
    body: bytes = BODY
    method: str = "POST"
    path: str = CHAT
    query: str = ""

    @property
    def given(self) -> list[tuple[str, str]]:
        """All headers, a length among them, as each adapter gets them."""
        return [KEY, ("content-length", str(len(self.body))), *self.headers]


STATED = {"model_state": 1, "model": "m", "token_limit_state": 2, "prompt_characters": 0}
READ = {**STATED, "user_state": 1, "user": "alice", "safety_identifier_state": 3}
VALID = {**READ, "safety_identifier_state": 2}
OVERRIDDEN = {"headers": [("x-http-method-override", "POST")]}
_NOISE = random.Random(9).randbytes(AT_ONCE // 2).hex()  # This text compresses to a half.
_LARGE = BODY[:-1] + f',"x":"{_NOISE}"}}'.encode()


def _unreadable(state: str) -> dict[str, Any]:
    number = pb.UserState.Value(f"USER_STATE_{state}")
    return {"user_state": number, "safety_identifier_state": number}


def _valid(place: str, value: str) -> dict[str, Any]:
    return {"place": place, "state": pb.USER_STATE_VALID, "value": value}


_SECOND = (("user", "b"), ("user", "c"), ("safety_identifier", "e"))
_AZURE = [("user_security_context.end_user_id", value) for value in ("f", "g")]
CASES = {
    "a chat": Case(READ),
    "a chat of more than is read at once": Case(READ, body=_LARGE),
    "a deployment's": Case(READ, path="/openai/deployments/Mine/chat/completions"),
    "out of scope": Case({}, path="/v1/models", method="GET", body=b""),
    "compressed": Case(READ, [("content-encoding", "gzip")], gzip.compress(BODY)),
    "compressed twice": Case(
        READ,
        [("content-encoding", "gzip"), ("content-encoding", "gzip")],
        gzip.compress(gzip.compress(BODY)),
    ),
    "compressed, and more than is read at once": Case(
        READ, [("content-encoding", "gzip")], gzip.compress(_LARGE)
    ),
    "not compressed as it says": Case(_unreadable("BAD_ENCODING"), [("content-encoding", "gzip")]),
    "an unknown coding": Case(
        _unreadable("UNSUPPORTED_ENCODING"), [("content-encoding", "compress")]
    ),
    "two types": Case(
        _unreadable("NOT_JSON"),
        [("content-type", "application/json"), ("content-type", "text/plain")],
    ),
    "the same type twice": Case(READ, [("content-type", "application/json")] * 2),
    "a form": Case(
        VALID,
        [("content-type", "multipart/form-data; boundary=B")],
        FORM,
        path="/v1/images/edits",
    ),
    "no JSON": Case(_unreadable("NOT_JSON"), body=b"{"),
    "an object in place of the user": Case(
        STATED | {"user_state": 5, "safety_identifier_state": 2},
        body=b'{"model":"m","user":{}}',
    ),
    "several users": Case(
        {**VALID, "user": "a", "end_users": [_valid("user", "b")]},
        body=b'{"model":"m","user":"a","user":"b"}',
    ),
    "several safety identifiers": Case(
        {**STATED, "user_state": 2, "safety_identifier_state": 1, "safety_identifier": "d"}
        | {"end_users": [_valid("safety_identifier", "e")]},
        body=b'{"model":"m","safety_identifier":"d","safety_identifier":"e"}',
    ),
    "several of each end user": Case(
        {
            **STATED,
            "user_state": 1,
            "user": "a",
            "safety_identifier_state": 1,
            "safety_identifier": "d",
        }
        | {"end_users": [_valid(*one) for one in (*_AZURE[:1], *_SECOND, *_AZURE[1:])]},
        body=b'{"model":"m","user":"a","user":"b","USER":"c","user":"a","safety_identifier":"d",'
        b'"safety_identifier":"e","user_security_context":{"end_user_id":"f","end_user_id":"g"}}',
    ),
    "numbers": Case(
        {
            "user_state": 2,
            "safety_identifier_state": 2,
            "model_state": 2,
            "token_limit": 500,
            "choices": 3,
            "prompt_characters": 5,
        },
        body=b'{"max_tokens":500,"n":3,"messages":[{"role":"user","content":"Hello"}]}',
    ),
    "no numbers": Case(
        {
            "user_state": 2,
            "safety_identifier_state": 2,
            "model_state": 4,
            "model": "o",
            "token_limit_state": 3,
            "prompt_characters": 0,
        },
        body=b'{"model":"m","model":"o","max_tokens":500,"n":0}',
    ),
    "further places": Case(
        READ
        | {
            "end_users": [
                {"place": "metadata.user_id", "state": 1, "value": "bob"},
                {"place": "user_security_context.end_user_id", "state": 3},
            ]
        },
        body=BODY[:-1]
        + b',"metadata":{"user_id":"bob"},"user_security_context":{"end_user_id":null}}',
    ),
    "a session": Case(
        STATED
        | {
            "user_state": 2,
            "safety_identifier_state": 1,
            "safety_identifier": "bob",
            "headers": [("openai-safety-identifier", "a"), ("openai-safety-identifier", "b")],
        },
        [("openai-safety-identifier", "a"), ("openai-safety-identifier", "b")],
        b'{"model":"m","session":{"safety_identifier":"bob"},"safety_identifier":""}',
        path="/v1/live/sessions",
    ),
    "a safety_identifier": Case(
        STATED | {"user_state": 2, "safety_identifier_state": 1, "safety_identifier": "s-1"},
        body=b'{"model":"m","safety_identifier":"s-1"}',
    ),
    "own headers": Case(
        READ
        | {
            "headers": [
                ("x-usagepanda-enforce-user-ids", "false"),
                ("x-usagepanda-enforce-user-ids", "true"),
                ("x-usagepanda-trace-id", "t-1"),
            ]
        },
        [
            ("x-usagepanda-enforce-user-ids", "false"),
            ("x-usagepanda-enforce-user-ids", "true"),
            ("x-usagepanda-trace-id", "t-1"),
            ("x-other", "kept back"),
        ],
    ),
    "remarks": Case(
        READ | {"user_agent": "a" * MAX_REMARK, "organization": "org", "request_id": "r-1"},
        [
            ("user-agent", "a" * 1000),
            ("user-agent", "the second"),
            ("openai-organization", "org"),
            ("x-request-id", "r-1"),
        ],
    ),
    "overridden by a header": Case(
        READ | OVERRIDDEN, [("x-http-method-override", "post")], method="GET"
    ),
    "overridden by a header with an underscore": Case(
        READ | OVERRIDDEN, [("x_http_method-override", "POST")], method="PUT"
    ),
    "overridden by the query": Case(READ | OVERRIDDEN, method="GET", query="a=1&_method=POST"),
    "not overridden": Case({}, method="GET", query="a=1", body=b""),
}


async def through_the_gateway(case: Case, bodies: Bodies) -> pb.EvaluateRequest:
    """Describe the request as the gateway does."""
    headers = read_request([(n.title().encode(), v.encode()) for n, v in case.given])
    scope = {
        "method": case.method,
        "query_string": case.query.encode(),
        "client": (ADDRESS, 50000),
    }
    settings = Settings(listen=Address("127.0.0.1", 0), upstream="http://x", max_body=LIMIT)
    intake = Intake(settings, None, lambda *_: None)
    asked = http_request(scope, case.path, headers, "up-of-the-operator")
    with intake.hold() as held:
        _, attributes = await intake.read(asked, _coming(case.body), headers, held)
    intake.close()
    return describe(asked, attributes)


async def through_the_check(case: Case, bodies: Bodies) -> pb.EvaluateRequest:
    """Describe the request as the HTTP check does, for a proxy."""
    target = case.path + ("?" + case.query if case.query else "")
    about = [("x-forwarded-method", case.method), ("x-forwarded-uri", target)]
    scope = {
        "method": "POST",
        "raw_path": b"/v1/check",
        "query_string": b"",
        "has_fragment": False,
        "is_spare": False,
        "scheme": "http",
        "headers": [
            (name.encode(), value.encode())
            for name, value in [*case.given, *about, ("x-forwarded-for", ADDRESS)]
        ],
    }
    request = Request(scope, _coming(case.body), 30)
    described, _ = await check.described(request, LIMIT, bodies, lambda _: True)
    return described


async def through_envoy(case: Case, bodies: Bodies) -> pb.EvaluateRequest:
    """Describe the request as ext_authz does, for Envoy."""
    attributes = AttributeContext()
    attributes.source.address.socket_address.address = ADDRESS
    http = attributes.request.http
    http.method, http.raw_body, http.protocol = case.method, case.body, "HTTP/1.1"
    http.path = case.path + ("?" + case.query if case.query else "")
    for name, value in case.given:
        http.header_map.headers.add(key=name, raw_value=value.encode())
    return (await ext_authz_request.read(attributes, bodies, lambda _: True)).described


def _coming(body: bytes) -> Callable[[], Awaitable[Message]]:
    """ASGI's receive() for a body in two pieces."""
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> Message:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    return receive


@pytest.fixture
async def bodies() -> AsyncIterator[Bodies]:
    found = Bodies(16 * LIMIT)
    yield found
    assert found.held == 0
    found.close()


def expected(case: Case) -> pb.EvaluateRequest:
    """The descriptor that the table states."""
    rest = dict(case.expected)
    headers = [KEY, *rest.pop("headers", ())]
    return pb.EvaluateRequest(
        method=case.method,
        path=case.path,
        source_ip=ADDRESS,
        headers=[pb.Header(name=name, value=value) for name, value in headers],
        **rest,
    )


@pytest.mark.parametrize("adapter", [through_the_gateway, through_the_check, through_envoy])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_the_descriptor(
    case: Case, adapter: Callable[[Case, Bodies], Awaitable[pb.EvaluateRequest]], bodies: Bodies
) -> None:
    """Whichever adapter a request arrives by, its descriptor has the same fields."""
    assert await adapter(case, bodies) == expected(case)


def _request(**rest: Any) -> HttpRequest:
    headers = rest.pop("headers", ())
    return HttpRequest("POST", CHAT, "", by_name(headers), **rest)


def test_what_counts_where_no_header_does() -> None:
    """The adapter's own API key and request ID are used only where the client sends none."""
    own = _request(key="up-own", request_id="r-own")
    assert (describe(own).key, describe(own).request_id) == ("up-own", "r-own")
    headers = [KEY, ("x-request-id", "r-1")]
    given = describe(_request(key="up-own", request_id="r-own", headers=headers))
    assert (given.key, given.request_id) == ("", "r-1")
    assert [(header.name, header.value) for header in given.headers] == [KEY]


def test_the_key_is_asked_about_as_it_is_described() -> None:
    """CheckKey gets the key, method, path and overriding header that Evaluate gets."""
    for request in (
        _request(headers=[KEY]),
        _request(key="up-own"),
        HttpRequest("GET", CHAT, "_method=post", by_name([KEY])),
    ):
        described, asked = describe(request), about_key(request)
        for name in ("key", "method", "path"):
            assert getattr(asked, name) == getattr(described, name)
        assert list(asked.headers) == list(described.headers)


@pytest.mark.parametrize("in_scope", [True, False])
def test_a_call_without_method_and_path(in_scope: bool) -> None:
    """Only the adapter knows whether such a call is in scope, and the descriptor tells so."""
    request = HttpRequest("", "", "", {}, in_scope=in_scope)
    assert request.target.in_scope is in_scope
    assert describe(request).in_scope is in_scope
    assert not describe(_request()).HasField("in_scope")


def test_headers_of_end_users() -> None:
    """Headers in which an end user may stand are described: those that the adapter names."""
    given = [("x-end-user", "alice"), ("x-end-user", "a\udcffb"), ("x-other", "a" * 2000), KEY]
    own = ("x-end-user", "x-other", "x-absent")
    described = describe(_request(headers=given, end_user_headers=frozenset(own)))
    assert sorted((header.name, header.value) for header in described.headers) == [
        ("x-end-user", "a?b"),
        ("x-end-user", "alice"),
        ("x-other", "a" * MAX_VALUE),
        KEY,
    ]
    assert [header.name for header in describe(_request(headers=given)).headers] == [KEY[0]]


@pytest.mark.parametrize("size", [1, 1365, 1366, 5000])
def test_a_long_header_in_another_alphabet(size: int) -> None:
    """A header that an adapter has as Latin-1 is read as UTF-8, however long it is."""
    blank = "\u3000" * size
    given = [("x-end-user", blank.encode().decode("latin-1"))]
    described = describe(_request(headers=given, end_user_headers=frozenset(["x-end-user"])))
    assert described.headers[0].value == blank[:MAX_VALUE]


@pytest.mark.parametrize(
    ("coding", "body", "counted"),
    [
        ("", _LARGE, 2 * len(_LARGE)),
        # Any body may grow to 256 KiB, which are read at once, and a larger one to a hundredfold.
        ("gzip", gzip.compress(BODY), 0),
        ("gzip", gzip.compress(_LARGE), 2 * len(gzip.compress(_LARGE)) + LIMIT),
    ],
    ids=["plain", "small", "compressed"],
)
async def test_what_a_body_may_take(coding: str, body: bytes, counted: int) -> None:
    """While a large body is read, its reader's copy and all that it may decompress to is counted,
    and nothing else."""
    request = _request(headers=[("content-encoding", coding)] if coding else [])
    for missing in (0, 1) if counted else (0,):
        bodies = Bodies(counted - missing)
        with bodies.hold() as held:
            reading = describing.read_attributes(request, Pieces(body), bodies, held, LIMIT)
            if missing:
                with pytest.raises(BodiesFull):
                    await reading
            else:
                assert (await reading).user.value == "alice"
        bodies.close()


@pytest.mark.parametrize("name", sorted(describing.READ))
def test_a_header_that_is_not_utf8(name: str) -> None:
    """A request with a header that is not UTF-8 is described, even where the client names that
    header in Connection, so that it is not forwarded and no other code looks at its bytes.
    """
    headers = read_request([(name.encode(), b"a\xffb"), (b"connection", name.encode())])
    scope = {"method": "POST", "client": None, "query_string": b""}
    described = describe(http_request(scope, CHAT, headers, ""))
    assert described.SerializeToString()


@pytest.mark.parametrize(
    ("path", "given", "is_described"),
    [
        (CHAT, SAFETY_HEADER, False),
        ("/v1/realtime/sessions", SAFETY_HEADER, True),
        ("/v1/models", SAFETY_HEADER, False),
        ("/v1/realtime/sessions", "x-other", False),
    ],
)
def test_the_endpoints_own_header(path: str, given: str, is_described: bool) -> None:
    """The header in which an endpoint takes an end user is described for that endpoint alone."""
    described = describe(HttpRequest("POST", path, "", {given: ["alice"]}))
    own = [(given, "alice")] if is_described else []
    assert [(header.name, header.value) for header in described.headers] == own


@pytest.mark.parametrize(
    ("values", "is_described"),
    [
        ([], False),
        (["00-ab-cd-01"], True),
        (["00-ab-cd-01", "00-ab-cd-01"], False),
        (["00-ab-cd-01", "00-ab-ef-01", ""], False),
        (["0" * MAX_REMARK], True),
        (["0" * (MAX_REMARK + 1)], False),
    ],
)
def test_the_callers_trace(values: list[str], is_described: bool) -> None:
    """What names the caller's trace is described if it stands there once and is not too long."""
    described = describe(_request(headers=[("traceparent", value) for value in values]))
    own = [("traceparent", values[0])] if is_described else []
    assert [(header.name, header.value) for header in described.headers] == own


@pytest.mark.parametrize("state", [NumberState.ABSENT, NumberState.INVALID])
def test_numbers_that_are_none(state: NumberState) -> None:
    """Of a number that a body does not give, the descriptor has the state alone."""
    given = read_body(BODY, "", "", None)._replace(
        token_limit=Number(state, 5), choices=Number(state, 5), prompt_chars=Number(state, 5)
    )
    described = describe(_request(), given)
    number = pb.NumberState.ValueType(state)
    assert (described.token_limit_state, described.prompt_characters_state) == (number, number)
    for name in ("token_limit", "choices", "prompt_characters"):
        assert not described.HasField(name)


@pytest.mark.parametrize(
    ("method", "overriding"),
    [("POST", ()), ("post", ()), ("", ()), ("GET", (("x-http-method-override", "POST"),))],
)
def test_what_overrides_the_method(method: str, overriding: Pairs) -> None:
    """Nothing overrides the method of a POST. What makes a POST of another method is in scope."""
    request = HttpRequest(method, CHAT, "_method=post", {})
    assert request.overriding == overriding
    assert request.target == endpoints.resolve("POST", CHAT)
