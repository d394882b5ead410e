"""Enforce Max Tokens: a bound on what a request lets the upstream generate."""

from policyd.engine.kinds import Limit
from policyd.engine.model import Violation
from policyd.engine.policy import Attributes, Need, Policy
from policyd.engine.states import NumberState


def _decide(attributes: Attributes, limit: int) -> Violation | None:
    asked = attributes.token_limit
    if asked.state is NumberState.GIVEN and 0 < asked.value <= limit:
        return None
    is_given = asked.state is NumberState.GIVEN
    number = str(asked.value) if is_given else "undefined"
    message = f"Config set to max tokens of: {limit}; request was: {number}"
    words = f"the token limit is {number}, and has to be from 1 to {limit}"
    return Violation(message, words if is_given else f"the token limit {_WORDS[asked.state]}")


_WORDS = {
    NumberState.UNKNOWN: "could not be known",
    NumberState.GIVEN: "is given",
    NumberState.ABSENT: "is absent: a request has to set max_tokens or its like",
    NumberState.INVALID: "is no whole number of tokens, or the number of choices is none",
}

POLICY = Policy(
    name="max_tokens",
    order=10,
    title="Enforce Max Tokens",
    hint="Requests must limit the tokens that they let the provider generate, up to this number.",
    kind=Limit(),
    needs=(Need.TOKEN_LIMIT,),
    subject="token limit",
    decide=_decide,
    tooltip="This request asked for more tokens than its key allows, or set no limit",
    header="x-usagepanda-max-tokens",
    operations=frozenset({"completion", "chat_completion", "response"}),
)
