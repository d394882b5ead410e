"""What a message of PolicyService says of its request, and what it is answered: policy.proto."""

import gzip
from typing import Any

import pytest

from policyd.descriptor import evaluate_request
from policyd.descriptor.body import MAX_RAW_BODY
from policyd.descriptor.evaluate_request import Heading, read, read_heading
from policyd.descriptor.identifiers import NOT_READ, TOO_LARGE, BodyAttributes, Identifier
from policyd.engine import endpoints
from policyd.engine.model import MAX_TOLD, Decision, Explanation, Result, Violation
from policyd.engine.places import USER, EndUser, Target
from policyd.engine.states import Credential, Ignored, Mode, Override, Source, UserState
from policyd.errors import InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

KEY = "X-UsagePanda-API-Key"
TRACE = "X-UsagePanda-Trace-ID"
CHAT = "/v1/chat/completions"
GIVEN, MISSING, CONFLICTING = Credential.GIVEN, Credential.MISSING, Credential.CONFLICTING
BODY = b'{"user":"alice"}'
Pairs = tuple[tuple[str, str], ...]


def headers(pairs: Pairs) -> list[pb.Header]:
    """Headers as a message has them."""
    return [pb.Header(name=name, value=value) for name, value in pairs]


def posted(pairs: Pairs = (), path: str = CHAT, method: str = "POST") -> pb.EvaluateRequest:
    """A request that has its body with it."""
    body = pb.RawBody(content=BODY)
    return pb.EvaluateRequest(headers=headers(pairs), method=method, path=path, raw_body=body)


@pytest.mark.parametrize(
    ("field", "pairs", "expected"),
    [
        ("", (), (MISSING, "")),
        ("", ((KEY, "up-1"),), (GIVEN, "up-1")),
        ("", ((KEY, "up-1"), (KEY.lower(), "up-1")), (GIVEN, "up-1")),
        ("", ((KEY, "up-1"), (KEY, "up-2")), (CONFLICTING, "")),
        ("", (("X-Other", "up-1"),), (MISSING, "")),
        ("up-3", (), (GIVEN, "up-3")),
        ("up-3", ((KEY, "up-1"), (KEY, "up-2")), (GIVEN, "up-3")),
    ],
)
def test_the_key(field: str, pairs: Pairs, expected: tuple[Credential, str]) -> None:
    """A message names its API key in its own field, or else in a header; all that read it agree."""
    asked = pb.CheckKeyRequest(key=field, headers=headers(pairs))
    assert evaluate_request.credential(asked) == expected
    message = posted(pairs)
    message.key = field
    assert evaluate_request.credential(message) == expected
    assert read_heading(message)[:2] == expected
    assert read(message).decision_input[1:3] == expected


def test_the_heading() -> None:
    """The headers for policyd alone are read once, repeats kept, and count as if they were read
    again."""
    mode = "X-UsagePanda-Enforce-User-IDs"
    message = posted(((TRACE, "t-1"), (mode, "false"), (KEY, "up-1"), (TRACE, "t-2"), (mode, "x")))
    overrides = ((mode.lower(), "false"), (mode.lower(), "x"))
    heading = Heading(GIVEN, "up-1", overrides, ("t-1", "t-2"))
    assert read_heading(message) == heading
    assert read(message, heading) == read(message)
    assert read(message).decision_input.overrides == overrides


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("", (), ""),
        ("", ("t-1",), "t-1"),
        ("", ("t-1", "t-2"), "t-1"),
        ("", ("not one",), ""),
        ("t-3", (), "t-3"),
        ("t-3", ("t-1",), "t-3"),
        ("not one", ("t-1",), ""),
    ],
)
def test_the_trace(field: str, values: tuple[str, ...], expected: str) -> None:
    """The trace stands in its own field, or else in the first header; a malformed one is none."""
    message = posted(tuple((TRACE, value) for value in values))
    message.trace_id = field
    assert read(message).trace_id == expected


def test_the_attributes_of_the_body() -> None:
    """A raw body is read, once; it counts as too large where it may not be."""
    message = posted()
    alice = read(message)
    assert alice.attributes.user == Identifier(UserState.VALID, "alice")
    assert EndUser(USER, UserState.VALID, "alice") in alice.decision_input.end_users
    bob = BodyAttributes(Identifier(UserState.VALID, "bob"), Identifier(UserState.ABSENT))
    assert read(message, body=bob).attributes is bob
    large = read(message, reads_body=False, body=bob)
    assert large.attributes is TOO_LARGE
    assert large.decision_input.unreadable is UserState.TOO_LARGE
    assert read(posted(path="/v1/models", method="GET")).attributes is NOT_READ


def test_nothing_about_a_user() -> None:
    """A message that says nothing about a user is an error where the request is judged for one."""
    message = pb.EvaluateRequest(method="POST", path=CHAT)
    with pytest.raises(InvalidDescriptor) as raised:
        read(message)
    assert str(raised.value) == (
        "nothing says whether this request has a user: set has_user, user_state or user, or send "
        "the body as raw_body; a call that is no endpoint of the API has in_scope false"
    )
    for method, path in (
        ("GET", CHAT),
        ("POST", "/v1/models"),
        ("POST", "/v1/%2563hat/completions"),
    ):
        unjudged = pb.EvaluateRequest(method=method, path=path)
        assert read(unjudged).decision_input.end_users == ()


@pytest.mark.parametrize(
    ("method", "path", "pairs", "in_scope"),
    [
        ("POST", CHAT, (), True),
        ("post", CHAT, (), True),
        ("", CHAT, (), True),
        ("GET", CHAT, (), False),
        ("GET", CHAT, (("X-HTTP-Method", "POST"),), True),
        ("GET", f"{CHAT}?_method=POST", (), True),
        ("GET", f"{CHAT}?_method=POST&next=/?x", (), True),
        ("GET", f"{CHAT}?x=/?_method=POST", (), True),
        ("GET", f"{CHAT}?method=POST", (), False),
        ("POST", "/v1/models", (), False),
        ("", "", (), True),
    ],
)
def test_the_target(method: str, path: str, pairs: Pairs, in_scope: bool) -> None:
    """What a message asks for is settled by its method, its path and what overrides the method,
    whatever the caller says of the scope."""
    given = headers(pairs)
    messages: list[pb.CheckKeyRequest | pb.EvaluateRequest] = [
        pb.CheckKeyRequest(method=method, path=path, headers=given),
        pb.EvaluateRequest(method=method, path=path, headers=given),
    ]
    if path:
        messages += [pb.EvaluateRequest(method=method, path=path, headers=given, in_scope=False)]
        messages += [pb.EvaluateRequest(method=method, path=path, headers=given, in_scope=True)]
    for message in messages:
        assert evaluate_request.target_of(message).in_scope is in_scope


@pytest.mark.parametrize("in_scope", [True, False])
def test_a_call_without_method_and_path(in_scope: bool) -> None:
    """The caller's word on the scope counts where there is neither method nor path."""
    message = pb.EvaluateRequest(in_scope=in_scope)
    assert evaluate_request.target_of(message) == Target(in_scope)


TYPE, OTHER = ("Content-Type", "text/plain"), ("content-type", "text/html")
CODING = ("Content-Encoding", "gzip")


@pytest.mark.parametrize(
    ("own", "pairs", "expected"),
    [
        (("", ""), (), ("", "")),
        (("", ""), (TYPE, CODING), ("text/plain", "gzip")),
        (("", ""), (TYPE, TYPE, CODING, CODING), ("text/plain", "gzip, gzip")),
        (("", ""), (TYPE, OTHER), (None, "")),
        (("a/b", "br"), (TYPE, OTHER, CODING), ("a/b", "br")),
        (("a/b", ""), (CODING,), ("a/b", "gzip")),
        (("", "br"), (TYPE,), ("text/plain", "br")),
    ],
)
def test_how_the_body_is_read(
    own: tuple[str, str], pairs: Pairs, expected: tuple[str | None, str]
) -> None:
    """The body's type and coding stand in its own fields, or else in the headers, which may
    contradict each other."""
    message = posted(pairs)
    message.raw_body.content_type, message.raw_body.content_encoding = own
    about = (*expected, endpoints.ENDPOINTS["/chat/completions"], MAX_RAW_BODY)
    assert evaluate_request.about_raw_body(message) == about
    assert evaluate_request.content_encoding(message) == expected[1]


def test_no_body_to_read() -> None:
    """There is no body to read where none came, or where the request is out of scope."""
    for message in (
        pb.EvaluateRequest(method="POST", path=CHAT),
        pb.EvaluateRequest(method="GET", path=CHAT),
        posted(method="GET"),
        posted(path="/v1/models"),
    ):
        assert evaluate_request.about_raw_body(message) is None


def test_a_compressed_body() -> None:
    """A raw body is decompressed as its headers say, and not where its own field says otherwise."""
    message = posted((CODING,))
    message.raw_body.content = gzip.compress(BODY)
    assert read(message).attributes.user.value == "alice"
    message.raw_body.content_encoding = "br"
    assert read(message).attributes.user.state is UserState.BAD_ENCODING


def _answer(*results: Result) -> pb.EvaluateResponse:
    why = Explanation(None, None, Ignored.NOT_IGNORED, True, "", UserState.VALID, "", "")
    return evaluate_request.answer(Decision(None, False, (), why, results))


def test_the_results() -> None:
    """The answer says what each policy found: its setting, and the message of a violation."""
    setting = (Mode.ENFORCE, "7", Source.KEY, Override.ANY, Ignored.LOCKED)
    answer = _answer(
        Result("kept", *setting),
        Result("violated", *setting, Violation("Too much.", "it has too much")),
        Result("failed", *setting, has_failed=True),
        Result(
            "long",
            Mode.AUDIT,
            "x" * (MAX_TOLD + 1),
            Source.DEFAULT,
            Override.ANY,
            Ignored.NOT_IGNORED,
        ),
    )
    told: dict[str, Any] = {
        "mode": pb.ENFORCE_MODE_ENFORCE,
        "value": "7",
        "source": pb.SETTING_SOURCE_KEY,
        "ignored": pb.OVERRIDE_IGNORED_LOCKED,
    }
    assert list(answer.results) == [
        pb.PolicyResult(policy="kept", **told),
        pb.PolicyResult(policy="violated", violated=True, message="Too much.", **told),
        pb.PolicyResult(policy="failed", violated=True, **told),
        pb.PolicyResult(
            policy="long",
            mode=pb.ENFORCE_MODE_AUDIT,
            value="x" * (MAX_TOLD - 1) + "…",
            source=pb.SETTING_SOURCE_DEFAULT,
        ),
    ]
