"""What a body says -> the fields of the question that policyd is asked."""

from policyd.descriptor.identifiers import BodyAttributes, Identifier
from policyd.v1.policy_pb2 import EvaluateRequest, UserState

MAX_REMARK = 256
"""Characters of what policyd only writes down."""


def put_facts(question: EvaluateRequest, facts: BodyAttributes) -> None:
    """Put `facts` into `question`."""
    question.model = facts.model[:MAX_REMARK]
    question.user_state = _state(facts.user)
    question.safety_identifier_state = _state(facts.safety_identifier)
    if facts.user.value:
        question.user = facts.user.value
    if facts.safety_identifier.value:
        question.safety_identifier = facts.safety_identifier.value


def _state(identifier: Identifier) -> UserState.ValueType:
    return UserState.ValueType(identifier.state)
