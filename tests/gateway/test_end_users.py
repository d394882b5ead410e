"""Headers that name end users count from clients that the operator trusts, and from no others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.end_users import EndUserHeaders
from gateway.headers import NO_TRUST, read_request
from gateway.server import Server
from gateway.settings import Settings
from policyd.command.networks import networks
from policyd.errors import SettingsError
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest, EvaluateResponse
from tests.gateway.conftest import FREE, IN_SESSION
from tests.support.raw_http import ask, serving_wire

NAMES = ("x-user", "x-forwarded-email")
E_ACUTE = "é".encode().decode("latin-1")
HEADERS = [
    ("X-User", "alice"),
    ("x_user", "eve"),
    ("x-user", "bob"),
    ("X-Forwarded-Email", E_ACUTE),
    ("x-forwarded_email", "eve"),
    ("X-Users", "all"),
    ("x-usagepanda-api-key", "up-1"),
]


@asynccontextmanager
async def serving(
    upstream: str, **settings: tuple[str, ...]
) -> AsyncIterator[tuple[str, list[EvaluateRequest]]]:
    """A gateway's URL, and what it asks."""
    asked: list[EvaluateRequest] = []

    async def allow(request: EvaluateRequest) -> EvaluateResponse:
        asked.append(request)
        return EvaluateResponse(decision=DECISION_ALLOW)

    async with Server(Settings(upstream=upstream, listen=FREE, **settings), allow) as server:  # type: ignore[arg-type]  # tuples alone
        yield server.url, asked


def shown(request: EvaluateRequest) -> list[tuple[str, str]]:
    """The headers that policyd is shown, without those of its own."""
    pairs = [(header.name, header.value) for header in request.headers]
    return sorted(pair for pair in pairs if not pair[0].startswith("x-usagepanda-"))


@pytest.mark.parametrize(
    ("networks", "told", "passed"),
    [
        (
            ("127.0.0.0/8",),
            [("x-forwarded-email", "é"), ("x-user", "alice"), ("x-user", "bob")],
            ["X-User: alice", "X-User: bob", f"X-Forwarded-Email: {E_ACUTE}", "X-Users: all"],
        ),
        (("192.0.2.1", "::1"), [], ["X-Users: all"]),
        ((), [], ["X-Users: all"]),
    ],
)
@IN_SESSION
async def test_which_clients_count(
    networks: tuple[str, ...], told: list[tuple[str, str]], passed: list[str]
) -> None:
    """Of a client in a trusted network, policyd and the upstream get the headers; of others,
    neither does. Twins with an underscore go nowhere.
    """
    settings = {"end_user_headers": NAMES, "end_user_networks": networks}
    async with serving_wire() as wire, serving(wire.url, **settings) as (url, asked):
        await ask(url, "POST", "/v1/embeddings", HEADERS, b"{}")
    [request] = asked
    assert shown(request) == told
    assert [one for one in wire.head if one.lower().startswith("x")] == passed


@IN_SESSION
async def test_what_connection_names() -> None:
    """A header that was judged reaches the upstream, even where Connection names it."""
    headers = [
        ("Connection", "x-user, openai-safety-identifier, x-named"),
        ("X-User", "alice"),
        ("x-named", "1"),
        ("OpenAI-Safety-Identifier", "hash"),
        ("OpenAI_Safety_Identifier", "eve"),
    ]
    settings = {"end_user_headers": NAMES, "end_user_networks": ("127.0.0.1",)}
    async with serving_wire() as wire, serving(wire.url, **settings) as (url, asked):
        await ask(url, "POST", "/v1/realtime/client_secrets", headers, b"{}")
    assert shown(asked[0]) == [("openai-safety-identifier", "hash"), ("x-user", "alice")]
    assert wire.head[2:4] == ["X-User: alice", "OpenAI-Safety-Identifier: hash"]


@IN_SESSION
async def test_the_endpoints_own_header() -> None:
    """OpenAI-Safety-Identifier is shown to policyd where it is a place of the endpoint."""
    header = [("OpenAI-Safety-Identifier", "hash")]
    async with serving_wire() as wire, serving(wire.url) as (url, asked):
        await ask(url, "POST", "/v1/embeddings", header, b"{}")
    assert shown(asked[0]) == []
    assert "OpenAI-Safety-Identifier: hash" in wire.head


@pytest.mark.parametrize(
    ("client", "is_trusted"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fe80::1%eth0", True),
        ("11.1.2.3", False),
        ("nonsense", False),
        ("", False),
    ],
)
def test_addresses(client: str, is_trusted: bool) -> None:
    """A client's address is in a network, as IPv4 within IPv6 too; what is none, in none."""
    trusted = networks(("10.0.0.0/8", "fe80::/10"), "--end-user-networks", "name some")
    known = EndUserHeaders(NAMES, trusted)
    for _ in range(2):
        assert bool(known.trust((client, 1)).read) == is_trusted
    assert not known.trust(None).read
    assert EndUserHeaders((), ()).trust((client, 1)) == NO_TRUST


def test_without_names_nothing_is_taken_out() -> None:
    """Where no header is listed, all go upstream."""
    raw = [(b"x-user", b"alice"), (b"x_user", b"eve")]
    assert read_request(raw).forwarded == [("x-user", "alice"), ("x_user", "eve")]


@pytest.mark.parametrize(
    ("names", "trusted", "told"),
    [
        (("X-User",), (), "lower case, such as x-forwarded-user, not 'X-User'"),
        (("",), (), "lower case"),
        (("x-user\n",), (), "lower case"),
        (("authorization",), (), "authorization has another meaning"),
        (("x-api-key",), (), "x-api-key has another meaning"),
        (("x-usagepanda-user",), (), "x-usagepanda-user has another meaning"),
        (("content-type",), (), "content-type has another meaning"),
        (tuple(f"x-{n}" for n in range(9)), (), "up to 8 headers"),
        ((), ("10.0.0.0/8",), "give --end-user-headers too"),
        (("x-user",), ("10.0.0.7/8",), "did you mean 10.0.0.0/8"),
        (("x-user",), ("0.0.0.0/0",), "every client, who could claim to be any end user"),
        (("x-user",), ("all",), "takes addresses and networks such as"),
    ],
)
def test_settings_that_are_none(
    names: tuple[str, ...], trusted: tuple[str, ...], told: str
) -> None:
    """A setting that cannot be meant is rejected at the start, with what to do."""
    with pytest.raises(SettingsError, match=told):
        Settings(end_user_headers=names, end_user_networks=trusted)
