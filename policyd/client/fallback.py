"""The answer in place of a decision, where policyd has made none."""

from typing import Literal

from policyd.engine import denial
from policyd.errors import NoDecision
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    EvaluateResponse,
    Explanation,
    Header,
)

OnError = Literal["raise", "deny", "allow"]
"""What evaluate() does without a decision.

raise: it raises NoDecision.
deny: it answers with a denial of its own, 503 with Retry-After.
allow: it allows if policyd could not be reached in time. If policyd would not decide, because its
log is full, its settings are older than min_revision, or the request is malformed, it denies all
the same; also if one policyd would not decide and the others cannot be reached.

An answer without a decision has no decision_id, and names the cause in explanation.summary.
"""


def instead(problem: NoDecision, on_error: OnError) -> EvaluateResponse:
    """The answer in place of a decision. Raises `problem` where `on_error` is "raise"."""
    if on_error == "raise":
        raise problem
    answer = EvaluateResponse(explanation=Explanation(summary=f"No decision: {problem}."))
    if on_error == "allow" and problem.is_outage:
        answer.decision = DECISION_ALLOW
        return answer
    denied = denial.NO_DECISION
    answer.decision = DECISION_DENY
    answer.denial.http_status, answer.denial.body = denied.status, denied.body
    answer.denial.headers.extend(Header(name=name, value=text) for name, text in denied.headers)
    return answer
