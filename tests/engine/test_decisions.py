"""The decision tables in tests/decisions, run through the engine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from policyd.descriptor.evaluate_request import read
from policyd.engine.model import Denial
from policyd.engine.policy import parse_setting
from policyd.engine.settings import KeySettings, RouteSettings, Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.policies import TABLE, decide
from policyd.v1 import policy_pb2 as pb

TABLES = sorted((Path(__file__).parents[1] / "decisions").glob("*.yaml"))
CASES = [
    pytest.param(case, id=f"{table.stem}: {case['it']}")
    for table in TABLES
    for case in yaml.load(table.read_text(), Loader=yaml.CSafeLoader)  # It is the fast safe one.
]


_STATES: dict[str, Any] = {
    "user_state": pb.UserState,
    "safety_identifier_state": pb.UserState,
    "model_state": pb.ModelState,
    "token_limit_state": pb.NumberState,
    "prompt_characters_state": pb.NumberState,
}


def request(fields: dict[str, Any]) -> pb.EvaluateRequest:
    message = pb.EvaluateRequest(key="up-test")
    for name, value in fields.items():
        if name == "headers":
            pairs = [line.split(":", 1) for line in value]
            message.headers.extend(pb.Header(name=n, value=v) for n, v in pairs)
        elif name == "body":
            message.raw_body.content = value.encode()
        elif name in _STATES:
            setattr(message, name, _STATES[name].Value(value))
        else:
            setattr(message, name, value)
    return message


def settings(case: dict[str, Any]) -> KeySettings | None:
    if case.get("no_key") or case.get("unknown_key"):
        return None
    key = case.get("key", {})
    return KeySettings(
        "key_test", policies(key), tuple(key.get("accept", ["user", "safety_identifier"]))
    )


def policies(level: dict[str, Any]) -> Settings:
    """What a level of a case sets: `mode` and `override` of the original policy, and others by
    their names, as `enforce:500`, or `enforce:500 locked`."""
    mode = Mode[level["mode"].upper()] if "mode" in level else None
    override = Override[level["override"].upper()] if "override" in level else None
    others = {}
    for name, text in level.get("policies", {}).items():
        written, _, may = text.partition(" ")
        setting = parse_setting(TABLE.by_name[name], written)
        others[name] = setting._replace(override=Override[may.upper()] if may else None)
    for name, text in level.get("unknown_policies", {}).items():
        word, _, value = text.partition(":")
        others[name] = Setting(Mode[word.upper()], value)
    return TABLE.with_original(mode, override, tuple(others.items()))


def route(case: dict[str, Any]) -> RouteSettings:
    given = case.get("route", {})
    return RouteSettings(policies(given), tuple(given.get("accept", [])))


def message(denial: Denial | None) -> str | None:
    return json.loads(denial.body)["error"]["message"] if denial else None


@pytest.mark.parametrize("case", CASES)
def test_case(case: dict[str, Any]) -> None:
    """Every case of the tables is decided as the table states."""
    if "error" in case:
        with pytest.raises(ValueError, match=re.escape(case["error"])):
            settings(case)
        return
    descriptor = request(case["request"])
    if case.get("no_key"):
        descriptor.key = ""
    default = policies({"mode": case["default"]} if "default" in case else {})
    given = read(descriptor, trusted=frozenset(case.get("trusted", ()))).decision_input
    decision = decide(given, settings(case), default, route(case))
    expected = {"flags": [], "would_deny": False} | case["expect"]
    missing = expected.pop("missing", "")
    assert "; ".join(decision.missing) == missing
    if missing:
        return
    why = decision.explanation
    actual = {
        "decision": "deny" if decision.denial else "allow",
        "status": decision.denial.status if decision.denial else None,
        "mode": why.mode.name.lower() if why.mode else None,
        "source": why.source.name.lower() if why.source else None,
        "ignored": why.ignored.name.lower(),
        "flags": [flag.type for flag in decision.flags],
        "would_deny": decision.would_deny,
        "in_scope": why.in_scope,
        "operation": why.operation,
        "user_state": why.user_state.name.lower(),
        "identifier": why.identifier,
        "message": message(decision.denial),
    }
    assert expected.pop("says", "") in why.summary
    assert expected.pop("summary", why.summary) == why.summary
    assert {name: actual[name] for name in expected} == expected
    assert why.summary.startswith("Denied" if decision.denial else "Allowed")


def test_there_are_tables() -> None:
    """The tables are found."""
    assert len(TABLES) >= 9
    assert len(CASES) > 280
