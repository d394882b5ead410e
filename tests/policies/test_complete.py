"""Every policy declares all that is made of it, and has its cases."""

import inspect
import re
from typing import Any

import pytest

from policyd.descriptor.evaluate_request import read
from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.policy import Policy
from policyd.engine.settings import KeySettings
from policyd.engine.states import Mode
from policyd.policies import TABLE, decide
from tests.engine import test_decisions as tables

CASES: list[Any] = [one.values[0] for one in tables.CASES]
each = pytest.mark.parametrize("policy", TABLE.policies, ids=lambda policy: policy.name)


@each
def test_what_it_declares(policy: Policy) -> None:
    """A policy declares all its texts, and names that are fit for flags, headers and command
    lines."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", policy.name)
    assert re.fullmatch(r"(x-[a-z]+(-[a-z]+)*)?", policy.header)
    assert policy.title
    assert policy.hint.endswith(".")
    assert policy.tooltip
    assert not policy.tooltip.endswith(".")
    assert policy.kind.usage.startswith("off, audit")
    assert policy.kind.canonical(policy.kind.example) == policy.kind.example
    assert bool(policy.header) <= bool(policy.kind.header_usage)
    assert policy.operations <= {one.operation for one in ENDPOINTS.values()}
    assert len(inspect.getdoc(inspect.getmodule(policy.decide)) or "") > 10


def test_names_are_different() -> None:
    """No two policies share what tells them apart."""
    policies = TABLE.policies
    for mapping in (TABLE.by_name, TABLE.by_flag, {one.order: one for one in policies}):
        assert len(mapping) == len(policies)
    assert len(TABLE.by_header) == sum(bool(one.header) for one in policies)
    assert len({one.title for one in policies}) == len(policies)
    assert [one.is_original for one in policies].count(True) == 1


@each
def test_cases(policy: Policy) -> None:
    """tests/decisions has a request that violates it, one that does not, one that is audited, and a
    setting that is rejected."""
    found = {kind for case in CASES for kind in kinds(policy, case)}
    assert found == {"violated", "kept", "audited", "rejected"}


def kinds(policy: Policy, case: dict[str, Any]) -> set[str]:
    """What a case shows of a policy."""
    if "error" in case:
        return {"rejected"} if policy.name in str(case["key"]) else set()
    key = tables.settings(case)
    if not isinstance(key, KeySettings):
        return set()
    decision = decide(
        read(tables.request(case["request"])).decision_input, key, (), tables.route(case)
    )
    result = next((one for one in decision.results if one.policy == policy.name), None)
    if result is None or result.mode is Mode.OFF or decision.missing:
        return set()
    if not result.violation:
        why = decision.explanation
        return {"kept"} if why.in_scope and policy.applies_to(why.operation) else set()
    return {"audited" if result.mode is Mode.AUDIT else "violated"}
