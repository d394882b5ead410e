"""Blocked Models: models that no request may use."""

from collections.abc import Callable

from policyd.engine.kinds import Patterns
from policyd.engine.model import Violation
from policyd.engine.policy import Attributes, Need, Policy
from policyd.engine.states import ModelState

_JUDGED = (ModelState.GIVEN, ModelState.ABSENT)


def _decide(attributes: Attributes, matches: Callable[[str], bool]) -> Violation | None:
    blocked = next((model for model in attributes.models if matches(model)), None)
    if blocked is not None:
        return _violation(blocked, f"the model {blocked} is blocked")
    if attributes.model_state not in _JUDGED:
        # An upstream may read it as a model that is blocked.
        return _violation("undefined", "the model cannot be told for certain")
    return None


def _violation(model: str, words: str) -> Violation:
    return Violation(f"Config set to block usage of model: {model}", words)


POLICY = Policy(
    name="disabled_models",
    order=50,
    title="Blocked Models",
    hint="Requests must not use a model that matches one of these patterns.",
    # Upstreams that ignore letter case must not get what is blocked in another spelling.
    kind=Patterns(ignores_case=True),
    needs=(Need.MODEL,),
    subject="model",
    decide=_decide,
    tooltip="This request asked for a model that its key blocks",
)
