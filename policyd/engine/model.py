"""The values of a decision: what it depends on, and what it is. Frozen, standard library only.

states   what can be the case;  places   where an end user can stand;  settings   what is set
"""

from dataclasses import dataclass
from typing import NamedTuple

from policyd.engine.places import EndUser, Target
from policyd.engine.states import (
    UNKNOWN_NUMBER,
    Credential,
    Ignored,
    Mode,
    ModelState,
    Number,
    Override,
    Source,
    UserState,
)


class DecisionInput(NamedTuple):
    """What a decision depends on. (A named tuple: it is made for every request.)"""

    target: Target
    credential: Credential
    key: str
    """The API key, where `credential` is GIVEN."""
    overrides: tuple[tuple[str, str], ...] = ()
    """The override headers as name and value, repeats kept, names in lower case."""
    end_users: tuple[EndUser, ...] = ()
    """The places about which something is known."""
    model_state: ModelState = ModelState.UNKNOWN
    model: str = ""
    """The model in the body, where it is GIVEN."""
    token_limit: Number = UNKNOWN_NUMBER
    """The most tokens that the upstream may generate, all choices together."""
    prompt_chars: Number = UNKNOWN_NUMBER
    """Characters of all prompts together."""
    unreadable: UserState = UserState.UNKNOWN
    """Why the body cannot be read, UNKNOWN where it can."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A mark on a decision in the log."""

    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Denial:
    """The HTTP response that denies a request."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Violation(NamedTuple):
    """How a request violates a policy."""

    message: str
    """For the client, in its denial."""
    words: str
    """For operators: a clause of the explanation."""


MAX_TOLD = 300
"""Characters of a setting's value, or a message, that answers, explanations and the log show."""


def cut(text: str, length: int) -> str:
    """`text` itself, or its beginning and an ellipsis: at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


class Result(NamedTuple):
    """What one policy found of a request."""

    policy: str
    """Its name."""
    mode: Mode
    """The mode in force, with `value`, from `source`."""
    value: str
    source: Source
    override: Override
    """Which headers may override the setting."""
    ignored: Ignored
    """Why the override header did not count, if there was one."""
    violation: Violation | None = None
    has_failed: bool = False
    """Whether the policy could not judge, so that the request is denied where it is enforced."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request was decided as it was."""

    mode: Mode | None
    """The original policy's, as are `source` and `ignored`. None where no API key in force was
    given, so that no mode counted."""
    source: Source | None
    ignored: Ignored
    in_scope: bool
    operation: str
    user_state: UserState
    identifier: str
    summary: str


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What was decided of one request. It is allowed where `denial` is None.

    Compared by identity: equal ones are the same one, as decision.py makes each once.
    """

    denial: Denial | None
    would_deny: bool
    flags: tuple[Flag, ...]
    explanation: Explanation
    results: tuple[Result, ...] = ()
    """One for each policy that is set, in the order of docs/contract.md, section 7."""
    missing: tuple[str, ...] = ()
    """What policies in force need and the caller did not give, so that there is no decision."""
    failures: tuple[tuple[str, Exception], ...] = ()
    """The policies that could not judge, and why."""
