"""Enforce Max Prompt Characters: a bound on the length of all prompts of a request together."""

from policyd.engine.kinds import Limit
from policyd.engine.model import Violation
from policyd.engine.policy import Attributes, Need, Policy
from policyd.engine.states import NumberState


def _decide(attributes: Attributes, limit: int) -> Violation | None:
    counted = attributes.prompt_chars
    if counted.state is NumberState.INVALID:
        words = "the characters of the prompt cannot be counted"
        return Violation(_message(limit, "undefined"), words)
    if counted.value <= limit:
        return None
    words = f"the prompt has {counted.value} characters, and may have {limit}"
    return Violation(_message(limit, str(counted.value)), words)


def _message(limit: int, number: str) -> str:
    return f"Config set to max prompt chars of: {limit}; prompt was: {number}"


POLICY = Policy(
    name="max_prompt_chars",
    order=20,
    title="Enforce Max Prompt Characters",
    hint="All prompts, messages or inputs of a request together have at most this many characters.",
    kind=Limit(),
    needs=(Need.PROMPT_CHARS,),
    subject="prompt",
    decide=_decide,
    tooltip="The prompt of this request was longer than its key allows",
    header="x-usagepanda-max-prompt-chars",
    operations=frozenset({"completion", "chat_completion", "response"}),
)
