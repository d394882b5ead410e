"""Enforce User IDs: no request without an end user. docs/contract.md, sections 1 to 3."""

from policyd.engine.kinds import Switch
from policyd.engine.model import Violation
from policyd.engine.policy import Attributes, Policy
from policyd.engine.states import UserState
from policyd.engine.summary import STATE_WORDS, place_words

_MESSAGE = "Config set to block requests without user field"
_VALID = UserState.VALID
_NO_PLACE = "no field of this endpoint is one that the API key accepts as an end user"


def _decide(attributes: Attributes, _: bool) -> Violation | None:
    user = attributes.end_user
    if user.state is _VALID:
        return None
    return Violation(_MESSAGE, _words(user.place, user.state))


def _words(place: str, state: UserState) -> str:
    return f"{place_words(place)} {STATE_WORDS[state]}" if place else _NO_PLACE


def _observe(place: str, state: UserState) -> str:
    may_be = "" if state is UserState.VALID or not place else ", and may be"
    return _words(place, state) + may_be


POLICY = Policy(
    name="enforce_user_ids",
    order=30,
    title="Enforce User IDs",
    hint="Requests must name the end user that they are made for.",
    kind=Switch(),
    # A caller may give one place only: the others then hold no end user.
    needs=(),
    subject="user field",
    decide=_decide,
    tooltip="This request carried no user",
    header="x-usagepanda-enforce-user-ids",
    description=_MESSAGE,
    observe=_observe,
    is_original=True,
)
