"""The conformance vectors of tests/vectors, and the checks that an adapter passes them.

An adapter over HTTP needs a server before `upstream`, and a few lines:

    @conformance.over_http
    def test_vectors(vector, keys, adapter_url, upstream):
        conformance.check_over_http(vector, adapter_url, keys.secret(vector.key), upstream)

That makes a test of each vector. `over_http_by_file` makes a test of each file, and a subtest of
each vector, which fails under the vector's ID: the same checks in a fraction of the time.
"""

import asyncio
import base64
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from policyd.engine import endpoints, method_override
from policyd.engine.places import Target
from policyd.engine.policy import MODES, OVERRIDES, parse_setting
from policyd.engine.settings import Settings
from policyd.policies import TABLE
from policyd.v1 import policy_pb2 as pb
from tests.support import raw_http
from tests.support.processes import Policyd
from tests.support.stack import Upstream

FOLDER = Path(__file__).parents[1] / "vectors"
FILES = sorted(FOLDER.glob("*.json"))
PLACEHOLDER = "{key}"
READ_BY = frozenset({"content-type", "content-encoding", "authorization"})
"""Headers that an upstream reads a request by: they reach it as they were judged."""
Mode = Literal["off", "audit", "enforce"]
Override = Literal["any", "tighten_only", "locked"]
Identifier = Literal[
    "user", "safety_identifier", "metadata.user_id", "user_security_context.end_user_id"
]
State = Literal[
    "",
    "valid",
    "absent",
    "empty",
    "blank",
    "not_string",
    "too_long",
    "not_json",
    "not_object",
    "bad_form",
    "bad_encoding",
    "unsupported_encoding",
    "too_large",
    "duplicate",
    "too_complex",
]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Key(_Struct, frozen=True):
    """The settings of the API key that {key} stands for."""

    mode: Mode | None = None
    override: Override = "any"
    accept: tuple[Identifier, ...] = ("user", "safety_identifier")
    policies: dict[str, str] = {}
    """The settings of other policies, as `policyd keys create --policy` takes them."""
    policy_overrides: dict[str, Override] = {}
    """Which requests may override them."""

    @property
    def settings(self) -> Settings:
        """The settings as the engine takes them."""
        others = {}
        for name, text in self.policies.items():
            override = self.policy_overrides.get(name)
            setting = parse_setting(TABLE.by_name[name], text)
            others[name] = setting._replace(override=OVERRIDES[override] if override else None)
        mode = MODES[self.mode] if self.mode else None
        return TABLE.with_original(mode, OVERRIDES[self.override], tuple(others.items()))


class Body(_Struct, frozen=True):
    """A body: one of its text, in UTF-8, and its bytes in base64."""

    text: str | None = None
    base64: str | None = None

    @property
    def content(self) -> bytes:
        """The bytes."""
        return (self.text or "").encode() if self.base64 is None else base64.b64decode(self.base64)


class Request(_Struct, frozen=True):
    """An HTTP request."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: Body | None = None

    @property
    def path(self) -> str:
        """The target without its query string."""
        return self.target.partition("?")[0]

    @property
    def asked(self) -> Target:
        """The endpoint that the request asks for."""
        query = self.target.partition("?")[2]
        method = method_override.in_force(self.method, self.headers, query)
        return endpoints.resolve(method, self.path)

    @property
    def content(self) -> bytes:
        """The body's bytes; none where it has no body."""
        return self.body.content if self.body else b""

    def headers_with(self, secret: str) -> list[tuple[str, str]]:
        """The headers, `secret` put in for {key}."""
        return [(name, value.replace(PLACEHOLDER, secret)) for name, value in self.headers]


class Descriptor(_Struct, frozen=True):
    """The fields to be read from the request. Out of scope it is the trace ID alone."""

    in_scope: bool
    trace_id: str
    operation: str = ""
    path: str = ""
    has_user: bool | None = None
    user_state: State = ""
    safety_identifier_state: State = ""
    user: str | None = None
    safety_identifier: str | None = None
    end_users: dict[Identifier, State] = {}
    """What is known of further places that the body has."""


class Decision(_Struct, frozen=True):
    """The decision to be made. It has no mode if the API key is refused."""

    decision: Literal["allow", "deny"]
    would_deny: bool
    flags: tuple[str, ...]
    mode: Mode | None = None
    source: Literal["header", "key", "default"] | None = None
    override_ignored: Literal["none", "locked", "tighten_only", "invalid"] = "none"


class Denial(_Struct, frozen=True):
    """A response that denies a request."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


class Vector(_Struct, frozen=True):
    """One request, and its expected treatment."""

    id: str
    it: str
    server_default: Mode
    key: Key
    request: Request
    descriptor: Descriptor
    decision: Decision
    denial: str | None = None
    upstream_target: str | None = None

    @property
    def target(self) -> Target:
        """What the request asks for, as it is to a key with these settings."""
        target = self.request.asked
        is_for = target.endpoint is None or target.endpoint.is_for(self.key.accept)
        return target if is_for else Target(in_scope=False)

    @property
    def response(self) -> Denial | None:
        """The response to a request that is denied."""
        return _file(_file_name(self)).denials[self.denial] if self.denial else None


class File(_Struct, frozen=True):
    """A file of vectors, and the denials that they name."""

    about: str
    denials: dict[str, Denial]
    vectors: tuple[Vector, ...]


@cache
def _file(name: str) -> File:
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=File)


def schema() -> dict[str, object]:
    """The JSON Schema of a file of vectors."""
    plain: dict[str, object] = msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(File)))
    return plain


VECTORS = tuple(vector for path in FILES for vector in _file(path.stem).vectors)


def parametrized(vectors: Iterable[Vector]) -> pytest.MarkDecorator:
    """Run a test with each of `vectors`, which it takes as `vector`."""
    given = [pytest.param(vector, id=vector.id) for vector in vectors]
    return pytest.mark.parametrize("vector", given)


def by_file(vectors: Iterable[Vector]) -> pytest.MarkDecorator:
    """Run a test with each file's share of `vectors`, which it takes as `vectors`."""
    files = {name: tuple(share) for name, share in groupby(vectors, _file_name)}
    return pytest.mark.parametrize("vectors", files.values(), ids=files)


def check_each(
    subtests: pytest.Subtests, vectors: Iterable[Vector], check: Callable[[Vector], None]
) -> None:
    """Run `check` with each of `vectors`, as a subtest of its ID."""
    for vector in vectors:
        with subtests.test(vector.id):
            check(vector)


def check_each_over_http(
    subtests: pytest.Subtests,
    vectors: Iterable[Vector],
    urls: Mapping[str, str],
    keys: Mapping[str, "Keys"],
    upstream: Upstream,
) -> None:
    """Check the adapters at `urls` by each of `vectors`, whose server's default names its adapter
    and the keys that it knows."""

    def check(vector: Vector) -> None:
        default = vector.server_default
        check_over_http(vector, urls[default], keys[default].secret(vector.key), upstream)

    check_each(subtests, vectors, check)


def _file_name(vector: Vector) -> str:
    return vector.id.partition("/")[0]


# Adapters over HTTP are run before one policyd, whose default is off.
_OVER_HTTP = tuple(vector for vector in VECTORS if vector.server_default == "off")
over_http = parametrized(_OVER_HTTP)
over_http_by_file = by_file(_OVER_HTTP)
everywhere_by_file = by_file(VECTORS)


class Keys:
    """API keys of `policyd`, by their settings."""

    def __init__(self, policyd: Policyd) -> None:
        self._policyd = policyd
        self._secrets: dict[bytes, str] = {}

    def secret(self, key: Key) -> str:
        """An API key with these settings, in force."""
        settings = msgspec.json.encode(key)
        if settings not in self._secrets:
            self._secrets[settings] = self._policyd.create_key(
                key.mode, key.override, ",".join(key.accept), key.settings
            )
        return self._secrets[settings]


def request_descriptor(vector: Vector, secret: str) -> pb.EvaluateRequest:
    """The request as a caller of PolicyService sends it that does not read bodies."""
    request = vector.request
    headers = [pb.Header(name=n, value=v) for n, v in request.headers_with(secret)]
    message = pb.EvaluateRequest(method=request.method, path=request.target, headers=headers)
    if request.body:
        message.raw_body.content = request.content
    return message


def check_answer(vector: Vector, answer: pb.EvaluateResponse) -> None:
    """Check that PolicyService has answered as the vector states."""
    expected = vector.decision
    assert _name(pb.Decision, answer.decision) == expected.decision
    assert answer.would_deny == expected.would_deny
    assert tuple(flag.type for flag in answer.flags) == expected.flags
    assert answer.trace_id == vector.descriptor.trace_id
    assert answer.upstream_path == vector.descriptor.path
    if vector.response:
        headers = tuple((header.name, header.value) for header in answer.denial.headers)
        denial = Denial(answer.denial.http_status, headers, answer.denial.body.decode())
        assert denial == vector.response
    else:
        assert not answer.HasField("denial")
    if expected.mode:
        _check_explanation(vector, answer.explanation)


def _check_explanation(vector: Vector, why: pb.Explanation) -> None:
    assert _name(pb.EnforceMode, why.mode) == vector.decision.mode
    assert _name(pb.SettingSource, why.source) == vector.decision.source
    ignored = _name(pb.OverrideIgnored, why.override_ignored)
    assert ignored.replace("unspecified", "none") == vector.decision.override_ignored
    assert why.in_scope == vector.descriptor.in_scope
    assert why.operation == vector.descriptor.operation
    if vector.descriptor.in_scope and vector.key.accept == ("user",):
        assert _name(pb.UserState, why.user_state) == vector.descriptor.user_state


def _name(enumeration: object, number: int) -> str:
    """The vectors' name for a value: that of policy.proto, in lower case and without its prefix."""
    name: str = enumeration.Name(number).lower()  # type: ignore[attr-defined]  # every enum has it
    prefixes = ("decision_", "enforce_mode_", "setting_source_", "override_ignored_", "user_state_")
    return name.removeprefix(next(filter(name.startswith, prefixes)))


def send(
    vector: Vector,
    url: str,
    secret: str,
    *,
    method: str = "",
    target: str = "",
    headers: Iterable[tuple[str, str]] = (),
) -> raw_http.Response:
    """Send the vector's request; another `method`, `target` and more `headers` where given."""
    request = vector.request
    pairs = [*request.headers_with(secret), *headers]
    if request.body and not request.content:
        pairs.append(("Content-Length", "0"))
    asked = raw_http.ask(
        *(url, method or request.method, target or request.target, pairs, request.content)
    )
    return asyncio.run(asked)


def check_response(vector: Vector, response: raw_http.Response, *, exact: bool = True) -> None:
    """Check that a denied request was answered as the vector states.

    If not `exact`, a server may send headers in an order and letter case of its own.
    """
    expected = vector.response
    assert expected
    assert response.status == expected.status
    assert response.body.decode() == expected.body
    if exact:
        assert tuple(response.headers[: len(expected.headers)]) == expected.headers
    for name, value in expected.headers:
        assert response.all(name) == [value]


def check_over_http(
    vector: Vector,
    url: str,
    secret: str,
    upstream: Upstream,
    *,
    exact: bool = True,
    refused: Iterable[str] = (),
) -> None:
    """Check that the adapter at `url`, before `upstream`, treats the request as the vector states.

    `refused` are the IDs of vectors whose requests its HTTP server itself rejects.
    """
    upstream.forget()
    request = vector.request
    response = send(vector, url, secret)
    received = [(got.target.decode("latin-1"), bytes(got.body)) for got in upstream.received]
    if vector.id in refused:
        assert 400 <= response.status < 500
        assert not received
    elif vector.response:
        assert not received
        check_response(vector, response, exact=exact)
    else:
        assert received == [(vector.upstream_target, request.content)], response
        check_headers(vector, upstream.received[0].headers)


def check_headers(vector: Vector, received: Iterable[tuple[bytes, bytes]]) -> None:
    """Check that the upstream got the headers by which a body is read, and none of ours.

    A name spelled with underscores is ours, too: to some upstreams an underscore is a dash.
    """
    got = [(name.decode("latin-1"), value.decode("latin-1").lower()) for name, value in received]
    for name, value in vector.request.headers:
        if name.lower() in READ_BY:  # Some servers write media types and codings in small letters.
            assert (name.lower(), value.lower()) in got, got
    assert not [name for name, _ in got if name.replace("_", "-").startswith("x-usagepanda-")]
