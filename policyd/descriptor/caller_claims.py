"""The model and the numbers that a descriptor claims, beside those in its raw body.

What the caller claims and what the body holds must agree on the model; of numbers the worse counts:
one that is not valid, else the larger one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from policyd.descriptor.identifiers import BodyAttributes
from policyd.descriptor.stated import MOST
from policyd.engine.endpoints import MAX_MODEL
from policyd.engine.states import UNKNOWN_NUMBER, ModelState, Number, NumberState
from policyd.errors import InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

_MODEL_STATES = tuple(ModelState)
_NUMBER_STATES = tuple(NumberState)
# Python takes longer to look up a member of an enumeration than to compare it.
_NAMED, _CONFLICTING = ModelState.GIVEN, ModelState.CONFLICTING
_NAMED_OR_NOT = (ModelState.UNKNOWN, ModelState.GIVEN, ModelState.ABSENT)
_GIVEN, _ABSENT, _INVALID = NumberState.GIVEN, NumberState.ABSENT, NumberState.INVALID
_Member = TypeVar("_Member")


def model(request: pb.EvaluateRequest, read: BodyAttributes) -> tuple[ModelState, str]:
    """What is known of the model. What the caller claims and what the body holds must agree; a name
    that only one of them has counts."""
    state, found, given = read.model_state, read.model, request.model
    if request.model_state or given:
        state = max(state, member(_MODEL_STATES, request.model_state, "model_state"))
        if state in _NAMED_OR_NOT:
            is_conflicting = found != "" and given not in ("", found)
            found = given or found
            state = _NAMED if found else state
            state = _CONFLICTING if is_conflicting else state
    if state is _NAMED and len(found) > MAX_MODEL:
        state = ModelState.TOO_LONG
    return state, found if state is _NAMED else ""


def token_limit(request: pb.EvaluateRequest, read: BodyAttributes) -> Number:
    """The tokens that all choices together may have."""
    limit, choices = read.token_limit, read.choices
    if request.token_limit_state or request.HasField("token_limit"):
        given = request.token_limit if request.HasField("token_limit") else None
        claimed = _number(request.token_limit_state, given, "token_limit_state")
        # The body goes upstream, so a claim does not make up for a limit that the body lacks.
        is_absent = limit.state is _ABSENT and claimed.state is _GIVEN
        limit = limit if is_absent else _worse(limit, claimed)
    if request.HasField("choices"):
        choices = _worse(choices, _number(0, request.choices, ""))
    if limit.state is not _GIVEN or choices.state in _NO_CHOICES:
        return limit
    if choices.state is _INVALID or choices.value < 1:
        return Number(_INVALID)
    return Number(_GIVEN, min(limit.value * choices.value, MOST))


_NO_CHOICES = (NumberState.UNKNOWN, NumberState.ABSENT)


def prompt_chars(request: pb.EvaluateRequest, read: BodyAttributes) -> Number:
    if not request.prompt_characters_state and not request.HasField("prompt_characters"):
        return read.prompt_chars
    given = request.prompt_characters if request.HasField("prompt_characters") else None
    claimed = _number(request.prompt_characters_state, given, "prompt_characters_state")
    return _worse(read.prompt_chars, claimed)


def _number(state: int, value: int | None, field: str) -> Number:
    """What a caller claims a number to be."""
    if value is None:
        return _unstated(state, field)
    claimed = member(_NUMBER_STATES, state, field)
    if value < 0 or claimed is _INVALID:
        return Number(_INVALID)
    return Number(_GIVEN, min(value, MOST))


@lru_cache(maxsize=256)
def _unstated(state: int, field: str) -> Number:
    claimed = member(_NUMBER_STATES, state, field)
    # GIVEN says nothing without the number, which has a field of its own.
    return UNKNOWN_NUMBER if claimed is _GIVEN else Number(claimed)


def _worse(one: Number, other: Number) -> Number:
    """The worse of two claims: one that is not valid, else the larger number."""
    if one is UNKNOWN_NUMBER:
        return other
    if _INVALID in (one.state, other.state):
        return Number(_INVALID)
    return max(one, other, key=lambda number: (number.state is _GIVEN, number))


def member(members: Sequence[_Member], number: int, field: str) -> _Member:
    """The member of an enumeration that a field names. Raises InvalidDescriptor."""
    if 0 <= number < len(members):
        return members[number]
    kind = type(members[0]).__name__
    raise InvalidDescriptor(f"{field} has no value {number}: see {kind} in policy.proto")
