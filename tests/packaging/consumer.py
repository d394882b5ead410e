"""A gateway of another project, as small as can be: test_wheel.py checks its types against the
installed wheel, and runs it where no policyd answers.

Each `type: ignore` below stands at a mistake. Where the wheel's types are lost, mypy finds nothing
wrong there and reports the comment as unused.
"""

import asyncio

from policyd.client import NoDecision, PolicyClient, SyncPolicyClient
from policyd.v1.policy_pb2 import Decision, EvaluateRequest, EvaluateResponse

UNREACHABLE = "127.0.0.1:1"
REQUEST = EvaluateRequest(key="up-test", method="POST", path="/v1/chat/completions")


def ask() -> EvaluateResponse:
    with SyncPolicyClient(UNREACHABLE, timeout=0.1, on_error="deny") as policyd:
        return policyd.evaluate(REQUEST)


async def ask_in_a_loop() -> EvaluateResponse:
    async with PolicyClient([UNREACHABLE], timeout=0.1, on_error="allow") as policyd:
        return await policyd.evaluate(REQUEST)


def ask_in_vain() -> str:
    with SyncPolicyClient(UNREACHABLE, timeout=0.1) as policyd:
        try:
            return policyd.evaluate(REQUEST).decision_id
        except NoDecision as problem:
            return str(problem)


def mistakes() -> None:
    # Each line is a mistake: mypy's strict mode reports an ignore that it does not need.
    SyncPolicyClient(UNREACHABLE).evaluate("up-test")  # type: ignore[arg-type]
    SyncPolicyClient(UNREACHABLE, on_error="ignore")  # type: ignore[arg-type]
    PolicyClient(50051)  # type: ignore[arg-type]
    EvaluateRequest(kee="up-test")  # type: ignore[call-arg]
    _ = ask().verdict  # type: ignore[attr-defined]


if __name__ == "__main__":
    assert ask().decision == Decision.DECISION_DENY
    assert asyncio.run(ask_in_a_loop()).decision == Decision.DECISION_ALLOW
    assert "127.0.0.1:1" in ask_in_vain()
