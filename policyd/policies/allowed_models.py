"""Allowed Models: the models that requests may use, and no others."""

from collections.abc import Callable

from policyd.engine.kinds import Patterns
from policyd.engine.model import Violation
from policyd.engine.policy import Attributes, Need, Policy
from policyd.engine.states import ModelState


def _decide(attributes: Attributes, matches: Callable[[str], bool]) -> Violation | None:
    other = next((model for model in attributes.models if not matches(model)), None)
    if other is not None:
        return _violation(other, f"the model {other} is not one of those allowed")
    if attributes.model_state not in (ModelState.GIVEN, ModelState.ABSENT):
        return _violation("undefined", "the model cannot be told for certain")
    if attributes.takes_model and not attributes.models:
        return _violation("undefined", "the request names no model")
    return None


def _violation(model: str, words: str) -> Violation:
    return Violation(f"Config set to block usage of model: {model}", words)


POLICY = Policy(
    name="allowed_models",
    order=60,
    title="Allowed Models",
    hint="Requests must use a model that matches one of these patterns.",
    kind=Patterns(),
    needs=(Need.MODEL,),
    subject="model",
    decide=_decide,
    tooltip="This request asked for a model that its key does not allow, or named none",
)
