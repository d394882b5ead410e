"""envoy.service.auth.v3.Authorization/Check on a real policyd, called as Envoy calls it."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from tests.support.commands import logged
from tests.support.envoy_checks import (
    BUFFERED,
    CHAT,
    CHAT_WITH_USER,
    KEY,
    OVERRIDE,
    Checker,
    flags,
    request,
    status,
)
from tests.support.processes import Policyd

GOLDEN = Path(__file__).parents[1] / "golden" / "no_user.json"


def message(answer: Any) -> str:
    return str(json.loads(answer.denied_response.body)["error"]["message"])


def test_a_denial(checker: Checker, enforcing: str) -> None:
    """A denial has the status, headers and body of docs/contract.md, section 4; its metadata names
    the decision.
    """
    answer = checker.ask(request({KEY: enforcing} | BUFFERED, CHAT))
    denied = answer.denied_response
    assert denied.status.code == 422
    assert denied.body.encode() == GOLDEN.read_bytes()
    assert [(one.header.key, one.header.value) for one in denied.headers[:-2]] == [
        ("Access-Control-Allow-Headers", "*"),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Methods", "OPTIONS,POST,GET"),
        ("Content-Type", "application/json"),
    ]
    assert [one.header.key for one in denied.headers[-2:]] == ["Date", "x-request-id"]
    metadata = answer.dynamic_metadata
    assert denied.headers[-1].header.value == metadata["decision_id"]
    assert len(metadata["decision_id"]) == 32
    assert (metadata["decision"], metadata["mode"]) == ("deny", "enforce")
    assert flags(answer) == ["policy_enforce_user_ids"]
    assert metadata["api_key_id"].startswith("key_")
    assert metadata["revision"] >= 1
    assert metadata["would_deny"] is False


def test_an_allowed_request(checker: Checker, enforcing: str) -> None:
    """policyd's own headers are not forwarded, nor one that some upstreams take for one of them."""
    own = {KEY: enforcing, "x-usagepanda-other": "1", "x_usagepanda_api_key": "2"}
    answer = checker.ask(request({"content-type": "application/json", **own}, CHAT_WITH_USER))
    assert status(answer) == 0
    assert sorted(answer.ok_response.headers_to_remove) == sorted(own)
    assert not answer.ok_response.headers
    assert answer.dynamic_metadata["decision"] == "allow"


@pytest.mark.parametrize(
    ("came", "goes"),
    [
        ("/v1//Chat/%63ompletions/?a=%2F&b", "/v1/chat/completions?a=%2F&b"),
        ("/v1/chat/completions;x=1?", "/v1/chat/completions?"),
        ("/v1/chat/completions?a=1", None),
        ("/v1/x/../%41udio?a=1", None),
    ],
)
def test_the_path_upstream(checker: Checker, enforcing: str, came: str, goes: str | None) -> None:
    """In scope the canonical path goes upstream, with the query unchanged.

    Out of scope, the path as sent.
    """
    answer = checker.ask(request({KEY: enforcing}, CHAT_WITH_USER, path=came))
    assert status(answer) == 0
    rewritten = {one.header.key: one.header.value for one in answer.ok_response.headers}
    assert rewritten == ({":path": goes} if goes else {})


def test_audit_and_off(checker: Checker, audited: str, off: str) -> None:
    """Audit allows and flags, off just allows."""
    noted = checker.ask(request({KEY: audited}, CHAT))
    assert status(noted) == 0
    assert noted.dynamic_metadata["would_deny"] is True
    assert flags(noted) == ["policy_enforce_user_ids"]
    assert flags(checker.ask(request({KEY: off}, CHAT))) == []


def test_the_body_as_text(checker: Checker, enforcing: str) -> None:
    """Without pack_as_bytes the body comes in another field, and is read all the same."""
    for body, expected in ((CHAT, 422), (CHAT_WITH_USER, 0)):
        asked = request({KEY: enforcing} | BUFFERED, body=body.decode())
        assert status(checker.ask(asked)) == expected


CUT = [
    {"x-envoy-auth-partial-body": "true"},
    {"x-envoy-auth-partial-body": "yes"},
    {"content-length": str(len(CHAT_WITH_USER) + 1)},
    {"content-length": str(len(CHAT_WITH_USER) + 1), **BUFFERED},
]


@pytest.mark.parametrize("headers", CUT)
def test_a_cut_body(
    checker: Checker, enforcing: str, audited: str, off: str, headers: dict[str, str]
) -> None:
    """A cut body is unknown, whatever its beginning is: enforce denies it with the setting to
    raise, audit flags it, and off allows it.
    """
    denied = checker.ask(request({KEY: enforcing} | headers, CHAT_WITH_USER))
    assert status(denied) == 413
    assert "with_request_body.max_request_bytes" in message(denied)
    noted = checker.ask(request({KEY: audited} | headers, CHAT_WITH_USER))
    assert (status(noted), flags(noted)) == (0, ["policy_enforce_user_ids"])
    passed = checker.ask(request({KEY: off} | headers, CHAT_WITH_USER))
    assert (status(passed), flags(passed)) == (0, [])


MISSING = [
    ({"content-length": "10"}, "HTTP/1.1"),
    ({"content-length": "10", **BUFFERED}, "HTTP/1.1"),
    ({"transfer-encoding": "chunked"}, "HTTP/1.1"),
    ({}, "HTTP/2"),
    ({}, ""),
]


@pytest.mark.parametrize(("headers", "protocol"), MISSING)
def test_a_body_that_was_not_sent(
    checker: Checker, enforcing: str, off: str, headers: dict[str, str], protocol: str
) -> None:
    """Where Envoy is not configured to send bodies, a request that may have one is denied too."""
    denied = checker.ask(request({KEY: enforcing} | headers, protocol=protocol))
    assert status(denied) == 413
    assert "set with_request_body.max_request_bytes" in message(denied)
    assert status(checker.ask(request({KEY: off} | headers, protocol=protocol))) == 0


@pytest.mark.parametrize(
    "headers", [{}, {"content-length": "0"}, BUFFERED, BUFFERED | {"transfer-encoding": "chunked"}]
)
def test_a_request_without_body(checker: Checker, enforcing: str, headers: dict[str, str]) -> None:
    """An empty body is no JSON object, as with the gateway."""
    assert status(checker.ask(request({KEY: enforcing} | headers))) == 400


def test_a_body_of_3_mb(checker: Checker, enforcing: str) -> None:
    """A body of 3 MB is read to its end."""
    body = b'{"messages":["' + b"x" * 3_000_000 + b'"],"user":'
    assert status(checker.ask(request({KEY: enforcing}, body + b'"u-1"}'))) == 0
    assert status(checker.ask(request({KEY: enforcing}, body + b'" "}'))) == 422


# Headers: (the values of the map, those of the raw list, the statuses of the two forms)
UNCLEAR = {
    "one true": ("true", ["true"], 422, 422),
    "one false": ("false", ["false"], 0, 0),
    "false twice": ("false,false", ["false", "false"], 422, 0),
    "true, then false": ("true,false", ["true", "false"], 422, 422),
    "false, then true": ("false, true", ["false", "true"], 422, 422),
    "false with a comma": ("false,", ["false,"], 422, 422),
    "two in one": ("false, false", ["false, false"], 422, 422),
    "not UTF-8": ("!alse", [b"\xffalse"], 422, 422),
}


@pytest.mark.parametrize("case", UNCLEAR.values(), ids=UNCLEAR)
def test_override_headers(checker: Checker, enforcing: str, case: Any) -> None:
    """A header that is not one clear false does not weaken.

    A map cannot tell two headers from a list.
    """
    joined, raw, by_map, by_list = case
    assert status(checker.ask(request({KEY: enforcing, OVERRIDE: joined}, CHAT))) == by_map
    listed = [(KEY, enforcing), *((OVERRIDE.title(), value) for value in raw)]
    assert status(checker.ask(request(listed, CHAT))) == by_list


def test_the_strictest_override_wins(checker: Checker, off: str) -> None:
    """Two headers that disagree switch enforcement on, and are flagged, in both forms."""
    for headers in (
        {KEY: off, OVERRIDE: "false,true"},
        [(KEY, off), (OVERRIDE, "true"), (OVERRIDE, "false")],
    ):
        answer = checker.ask(request(headers, CHAT))
        assert status(answer) == 422
        assert flags(answer) == ["policy_enforce_user_ids", "invalid_override"]


def test_keys(checker: Checker, enforcing: str, off: str) -> None:
    """No key, an unknown one and two that differ are denied; the same key twice counts as one."""
    unknown = "up-" + "0" * 48
    for value in ("", "nonsense", unknown, f"{enforcing},{off}", f"{enforcing},"):
        for headers in ({KEY: value}, [(KEY, each) for each in value.split(",")]):
            assert status(checker.ask(request(headers, CHAT_WITH_USER))) == 403
    assert "No API key" in message(checker.ask(request({}, CHAT_WITH_USER)))
    assert "Two different" in message(checker.ask(request({KEY: f"{enforcing},{off}"}, CHAT)))
    for headers in ({KEY: f"{enforcing},{enforcing}"}, [(KEY, enforcing), (KEY, enforcing)]):
        assert status(checker.ask(request(headers, CHAT_WITH_USER))) == 0


@pytest.mark.parametrize("joined", [True, False])
def test_two_content_types(checker: Checker, enforcing: str, joined: bool) -> None:
    """The upstream may follow either of two that differ, so the request is denied.

    The same one twice is one.
    """
    for first, second, expected in (("application/json", "text/x", 400), ("text/x", "text/x", 0)):
        headers: Any = {KEY: enforcing, "content-type": f"{first},{second}"}
        if not joined:
            headers = [(KEY, enforcing), ("content-type", first), ("content-type", second)]
        assert status(checker.ask(request(headers, CHAT_WITH_USER))) == expected


def test_what_is_no_http_request(checker: Checker) -> None:
    """Such a Check gets an error, at which Envoy denies the request."""
    with pytest.raises(grpc.RpcError, match="network") as caught:
        checker.ask(CheckRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_decision_log(checker: Checker, policyd: Policyd, enforcing: str) -> None:
    """A Check is logged as any other decision is, with Envoy's description of its request."""
    headers = {KEY: enforcing, "user-agent": "test/1", "openai-organization": "org-1"}
    answer = checker.ask(
        request(headers, CHAT_WITH_USER, {"policyd.mode": "audit"}, path="/v1/a?b")
    )
    unscoped = logged(policyd.database_url, answer.dynamic_metadata["decision_id"])
    assert (unscoped["source"], unscoped["path"]) == ("route", "/v1/a")
    answer = checker.ask(request(headers, CHAT_WITH_USER))
    entry = logged(policyd.database_url, answer.dynamic_metadata["decision_id"])
    expected = {
        "source": "key",
        "operation": "chat_completion",
        "user": "u-1",
        "model": "gpt-4o-mini",
        "source_ip": "192.0.2.7",
        "user_agent": "test/1",
        "organization": "org-1",
    }
    assert {name: entry.get(name) for name in expected} == expected
