"""The settings that context_extensions give a route, by Check on a real policyd."""

import time

import grpc
import pytest

from tests.support.envoy_checks import CHAT, CHAT_WITH_USER, KEY, OVERRIDE, Checker, request, status
from tests.support.processes import Policyd


def test_the_routes_settings(checker: Checker, enforcing: str, off: str, locked: str) -> None:
    """A route sets the mode, which overrides it permits, and what counts as a user."""
    assert status(checker.ask(request({KEY: enforcing}, CHAT, {"policyd.mode": "audit"}))) == 0
    assert status(checker.ask(request({KEY: off}, CHAT, {"policyd.mode": "enforce"}))) == 422
    overridden = {KEY: enforcing, OVERRIDE: "false"}
    fixed = {"policyd.override": "locked"}
    assert status(checker.ask(request(overridden, CHAT, fixed))) == 422
    loosened = {"policyd.override": "any", "another.filter": "x"}
    assert status(checker.ask(request(overridden | {KEY: locked}, CHAT, loosened))) == 0
    body = CHAT[:-1] + b',"safety_identifier":"s-1"}'
    accepting = {"policyd.accept": "user, safety_identifier"}
    assert status(checker.ask(request({KEY: enforcing}, body, accepting))) == 0
    assert status(checker.ask(request({KEY: enforcing}, body))) == 0
    assert status(checker.ask(request({KEY: enforcing}, body, {"policyd.accept": "user"}))) == 422


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("policyd.mode", "on", "one of off, audit, enforce"),
        ("policyd.mode", "", "one of off, audit, enforce"),
        ("policyd.override", "ANY", "one of any, tighten_only, locked"),
        ("policyd.accept", "user,email", "a list of places, as accept names 'email'"),
        ("policyd.max_tokens", "enforce:lots", "a limit is a whole number from 1 to"),
        ("policyd.max_tokens.override", "never", "one of any, tighten_only, locked"),
        ("policyd.max_tokens.mode", "off", "policyd.POLICY, policyd.POLICY.override"),
        ("policyd.mood", "audit", "policyd.mode, policyd.override, policyd.accept"),
        ("Policyd-Mode", "audit", "policyd.mode, policyd.override, policyd.accept"),
    ],
)
def test_unknown_settings_of_a_route(
    checker: Checker, policyd: Policyd, off: str, name: str, value: str, written: str
) -> None:
    """Unknown settings give no decision, so a slip allows nothing; the log tells why, once."""
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            checker.ask(request({KEY: off}, CHAT_WITH_USER, {name: value}))
        error = caught.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        details = error.details() or ""
        assert written in details
    assert lines_with(policyd, details) == 1


def lines_with(policyd: Policyd, words: str) -> int:
    """The number of lines of its log that hold these words; waits for the first."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if count := sum(words in line for line in list(policyd.errors)):
            return count
        time.sleep(0.02)
    return 0
