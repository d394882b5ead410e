"""What a caller gets in place of a decision, where policyd has made none."""

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
"""What evaluate() does where there is no decision.

raise: it raises NoDecision.
deny: it answers with a denial of its own, 503 with Retry-After.
allow: it allows, where policyd could not be reached in time; where policyd would not decide, as
its log is full, its settings are older than min_revision or the question is malformed, it denies
all the same. So it does where one policyd would not decide and the others cannot be reached.
Such an answer has no decision_id, and says the cause in explanation.summary.
"""


def instead(problem: NoDecision, on_error: OnError) -> EvaluateResponse:
    """The answer in place of a decision. Raises `problem` where the caller wants that."""
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
