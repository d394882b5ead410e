"""What holds for every CheckRequest over gRPC, tested with hypothesis."""

import gzip
import json
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import examples
from tests.support.envoy_checks import CHAT, KEY, PATH, Checker, request, status

characters = st.characters(exclude_categories=["Cs"])
text = st.text(characters, max_size=20)
flags = st.sampled_from(["true", "false", "false,true", ""]) | text
own = st.fixed_dictionaries(
    {},
    optional={
        "x-usagepanda-enforce-user-ids": flags,
        "x-usagepanda-trace-id": text,
        "x-envoy-auth-partial-body": flags,
        "content-length": st.sampled_from(["0", "10", "9" * 30, "-1"]) | text,
        "content-type": st.sampled_from(["application/json", "multipart/form-data; boundary=x"])
        | text,
        "content-encoding": st.sampled_from(["gzip", "br", "identity"]) | text,
        "transfer-encoding": text,
    },
)
headers = st.builds(lambda one, other: one | other, own, st.dictionaries(text, text, max_size=3))
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=5,
)
no_user = st.sampled_from([None, "", " \u200b", 0, 1, True, [], ["u"]])
userless = st.dictionaries(
    st.sampled_from(["model", "messages", "metadata", "User"]), values
) | st.fixed_dictionaries({}, optional={"user": no_user, "safety_identifier": no_user})
bodies = (
    examples.NAMELESS
    | userless.map(lambda members: json.dumps(members).encode())
    | userless.map(lambda members: gzip.compress(json.dumps(members).encode()))
    | st.just(CHAT)
)
paths = st.sampled_from(
    [PATH, "/v1//chat/%63ompletions?x", "/embeddings", "/v1/images/edits/", "/v1/responses;a"]
)
protocols = st.sampled_from(["HTTP/1.1", "HTTP/2", ""])


@settings(deadline=None, max_examples=examples.times(2))
@given(headers, bodies, paths, protocols, st.booleans(), st.booleans())
def test_no_request_without_user_is_allowed(
    checker: Checker,
    locked: str,
    given_headers: dict[str, str],
    body: bytes,
    path: str,
    protocol: str,
    is_raw: bool,
    is_text: bool,
) -> None:
    """An enforcing key denies a request without a user, whatever its other fields are."""
    named: Any = given_headers | {KEY: locked}
    if is_raw:
        named = list(named.items())
    fields: dict[str, Any] = {"raw_body": body}
    if is_text:
        fields = {"body": body.decode(errors="replace")}
    answer = checker.ask(request(named, path=path, protocol=protocol, **fields))
    assert status(answer) in (400, 413, 415, 422)


anything = st.builds(
    request,
    headers | st.lists(st.tuples(text, st.binary(max_size=20)), max_size=4),
    bodies,
    st.dictionaries(
        st.sampled_from(["policyd.mode", "policyd.accept", "other"]) | text, flags, max_size=2
    ),
    method=st.sampled_from(["POST", "GET", "post"]) | text,
    path=paths | text,
    protocol=protocols | text,
    body=text,
)


@settings(deadline=None, max_examples=examples.times(2))
@given(anything)
def test_every_request_is_answered(checker: Checker, asked: CheckRequest) -> None:
    """Every CheckRequest is decided, or is an invalid argument; none makes policyd fail."""
    try:
        status(checker.ask(asked))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017  # or it is decided
