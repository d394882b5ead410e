"""No malformed request slips past Envoy, as shipped and as other products configure it."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.proxies.envoy.proxy import Envoy, ext_authz, listener, manager, manifest
from tests.proxies.envoy.test_envoy import GOLDEN, JSON, ask
from tests.support.envoy_checks import CHAT, CHAT_WITH_USER, KEY, OVERRIDE
from tests.support.stack import Upstream

Config = dict[str, Any]

EDITS = "/v1/images/edits"
FORM = ("Content-Type", "multipart/form-data; boundary=x")
FILE = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n\x89PNG\xff\r\n'
)
USER = b'--x\r\nContent-Disposition: form-data; name="user"\r\n\r\nu-1\r\n'
GZIP = ("Content-Encoding", "gzip")


def as_shipped(_: Config) -> None:
    """The bootstrap of integrations/envoy."""


def as_istio(config: Config) -> None:
    """All headers, in a map.

    Bodies as the manifest configures them, in buffers of Envoy's own size.
    """
    providers = manifest("istio/mesh-config.yaml")["spec"]["meshConfig"]["extensionProviders"]
    told = providers[0]["envoyExtAuthzGrpc"]["includeRequestBodyInCheck"]
    _as_control_planes_do(config)
    ext_authz(config)["with_request_body"] = {
        "max_request_bytes": told["maxRequestBytes"],
        "allow_partial_message": told["allowPartialMessage"],
        "pack_as_bytes": told["packAsBytes"],
    }
    del listener(config)["per_connection_buffer_limit_bytes"]


def as_envoy_gateway(config: Config) -> None:
    """All headers, in a map; bodies as text, whole or not at all, in small buffers."""
    told = manifest("gateway/security-policy.yaml")["spec"]["extAuth"]["bodyToExtAuth"]
    _as_control_planes_do(config)
    ext_authz(config)["with_request_body"] = {"max_request_bytes": told["maxRequestBytes"]}
    listener(config)["per_connection_buffer_limit_bytes"] = 32768


def _as_control_planes_do(config: Config) -> None:
    manager(config)["upgrade_configs"] = [{"upgrade_type": "websocket"}]
    ext_authz(config)["encode_raw_headers"] = False
    del ext_authz(config)["allowed_headers"]


FLAVOURS = [as_shipped, as_istio, as_envoy_gateway]


@pytest.fixture(scope="module", params=FLAVOURS, ids=lambda flavour: flavour.__name__)
def flavour(
    request: pytest.FixtureRequest, config: Callable[..., Any], start: Callable[..., Envoy]
) -> tuple[str, Envoy]:
    """A name, and an Envoy that is configured so."""
    made = config()
    request.param(made)
    return request.param.__name__, start(made)


@pytest.fixture
def proxy(flavour: tuple[str, Envoy]) -> Envoy:
    return flavour[1]


def test_keys(proxy: Envoy, upstream: Upstream, enforcing: str, off: str) -> None:
    """A request without a key, with an unknown one, or with two that differ is denied with 403.

    The same key twice counts as one.
    """
    missing = ask(proxy, "", CHAT_WITH_USER, JSON)
    unknown = ask(proxy, "up-" + "0" * 48, CHAT_WITH_USER, JSON)
    malformed = ask(proxy, "up-\xe9", CHAT_WITH_USER, JSON)
    differing = ask(proxy, enforcing, CHAT_WITH_USER, JSON, (KEY.upper(), off))
    assert {one.status for one in (missing, unknown, malformed, differing)} == {403}
    assert "No API key" in missing.message
    assert unknown.body == malformed.body
    assert "Two different" in differing.message
    assert not upstream.received
    assert ask(proxy, enforcing, CHAT_WITH_USER, JSON, (KEY.title(), enforcing)).status == 200


BODY = b'{"model":"m","messages":[],"user":"u-1","x":"%b"}'
LIMITS = {"as_shipped": 4_000_000, "as_istio": 1_000_000, "as_envoy_gateway": 4_000_000}


def test_a_large_body(
    flavour: tuple[str, Envoy], upstream: Upstream, enforcing: str, off: str
) -> None:
    """A body is read up to max_request_bytes.

    Beyond that it is denied with the setting's name, however its length is given, and forwarded
    whole where the key does not enforce.
    """
    name, proxy = flavour
    assert ask(proxy, enforcing, BODY % (b"x" * (LIMITS[name] - 50)), JSON).status == 200
    upstream.forget()
    over = BODY % (b"x" * (LIMITS[name] + 500_000))
    answer = ask(proxy, enforcing, over, JSON)
    assert answer.status == 413
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(over), over)
    assert ask(proxy, enforcing, chunked, JSON, ("Transfer-Encoding", "chunked")).status == 413
    assert not upstream.received
    if name == "as_envoy_gateway":  # Envoy does not ask policyd, and answers by itself.
        assert answer.body == b"Payload Too Large"
        return
    assert "with_request_body.max_request_bytes" in answer.message
    assert ask(proxy, off, over, JSON).status == 200
    assert upstream.received[0].length == len(over)


def test_a_forged_marker(proxy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """A client's own x-envoy-auth-partial-body does not make a cut body count as whole."""
    over = b'{"user":"u-1","x":"%b"}' % (b"x" * 4_500_000)
    marker = ("x-envoy-auth-partial-body", "false")
    assert ask(proxy, enforcing, over, JSON, marker).status == 413
    assert ask(proxy, enforcing, CHAT, JSON, marker).status == 422
    assert not upstream.received


BODIES = {
    "empty": (b"", 400),
    "cut short": (CHAT_WITH_USER[:-1], 400),
    "an array": (b"[]", 400),
    "user twice": (CHAT[:-1] + b',"user":"a","user":""}', 422),
    "a blank user": (CHAT[:-1] + b',"user":" "}', 422),
    "null": (CHAT[:-1] + b',"user":null}', 422),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_bodies(proxy: Envoy, upstream: Upstream, enforcing: str, body: bytes, status: int) -> None:
    """A body that does not clearly carry a user is denied, in OpenAI's shape."""
    answer = ask(proxy, enforcing, body, JSON)
    assert answer.status == status
    assert list(json.loads(answer.body)["error"]) == ["message", "type", "param", "code"]
    assert not upstream.received


def test_websockets(proxy: Envoy, upstream: Upstream, off: str) -> None:
    """WebSockets are denied with 426, though control planes have Envoy pass them on."""
    headers = [("Connection", "Upgrade"), ("Upgrade", "WebSocket"), ("Sec-WebSocket-Key", "x")]
    answer = ask(proxy, off, None, *headers, method="GET", path="/v1/responses")
    assert answer.status == 426
    assert "WebSocket" in answer.message
    assert not upstream.received


def test_no_body(proxy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """A POST without a body is denied."""
    assert ask(proxy, enforcing, None).status == 400
    assert not upstream.received


def test_gzip(flavour: tuple[str, Envoy], upstream: Upstream, enforcing: str) -> None:
    """A compressed body is read; where Envoy spoils it by sending it as text, it is denied."""
    name, proxy = flavour
    packed = gzip.compress(CHAT_WITH_USER)
    passes = name != "as_envoy_gateway"
    assert ask(proxy, enforcing, packed, JSON, GZIP).status == (200 if passes else 400)
    assert [bytes(one.body) for one in upstream.received] == [packed] * passes
    upstream.forget()
    assert ask(proxy, enforcing, gzip.compress(CHAT), JSON, GZIP).status == (422 if passes else 400)
    assert ask(proxy, enforcing, packed[:-9], JSON, GZIP).status == 400
    assert ask(proxy, enforcing, packed, JSON, ("Content-Encoding", "lzma")).status == 415
    assert not upstream.received


def test_multipart(proxy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """The user field of a form counts, and an incomplete form is denied."""
    assert ask(proxy, enforcing, FILE + USER + b"--x--\r\n", FORM, path=EDITS).status == 200
    upstream.forget()
    denied = ask(proxy, enforcing, FILE + b"--x--\r\n", FORM, path=EDITS)
    assert (denied.status, denied.body) == (422, GOLDEN.read_bytes())
    assert ask(proxy, enforcing, FILE + USER, FORM, path=EDITS).status == 400
    assert not upstream.received


@pytest.mark.parametrize(
    "values", [["true", "false"], ["false", "true"], ["false,false"], ["0"], ["fals\xe9"]]
)
def test_unclear_overrides(
    proxy: Envoy, upstream: Upstream, enforcing: str, values: list[str]
) -> None:
    """A header that is not one clear false leaves enforcement on."""
    answer = ask(proxy, enforcing, CHAT, JSON, *((OVERRIDE, value) for value in values))
    assert answer.status == 422
    assert not upstream.received


def test_clear_overrides(flavour: tuple[str, Envoy], enforcing: str, off: str) -> None:
    """One override header is followed, and so are two equal ones if Envoy shows that they are
    two."""
    name, proxy = flavour
    assert ask(proxy, enforcing, CHAT, JSON, (OVERRIDE, "False")).status == 200
    assert ask(proxy, off, CHAT, JSON, (OVERRIDE, "TRUE")).status == 422
    twice = ask(proxy, enforcing, CHAT, JSON, (OVERRIDE, "false"), (OVERRIDE, "false"))
    assert twice.status == (200 if name == "as_shipped" else 422)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat%2Fcompletions",
        "/v1/%63hat/completions",
        "/V1/Chat/Completions/",
        "/v1/models/../chat/completions?x=/v1/models",
        "/v1/chat/completions%20",
        "/v1/chat/completions;a=b",
        "http://api.openai.com/v1/chat/completions",
        "/chat/completions",
    ],
)
def test_paths(proxy: Envoy, upstream: Upstream, enforcing: str, path: str) -> None:
    """No spelling of a path slips past the check."""
    assert ask(proxy, enforcing, CHAT, JSON, path=path).status == 422
    assert not upstream.received


def test_without_bodies(
    config: Callable[..., Any],
    start: Callable[..., Envoy],
    upstream: Upstream,
    enforcing: str,
    off: str,
) -> None:
    """Where Envoy sends no bodies at all, no request counts as having a user or as having none."""
    made = config()
    del ext_authz(made)["with_request_body"]
    proxy = start(made)
    answer = ask(proxy, enforcing, CHAT_WITH_USER, JSON)
    assert answer.status == 413
    assert "with_request_body" in answer.message
    assert not upstream.received
    assert ask(proxy, off, CHAT, JSON).status == 200
