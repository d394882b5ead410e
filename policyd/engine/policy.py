"""What a policy declares. All else is derived from it: settings, headers, flags, pages, logs.

A policy judges; it knows neither where its setting came from nor what becomes of its verdict. The
engine alone knows levels, modes and overrides (plan.py, decision.py).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from policyd.engine.kinds import Kind
from policyd.engine.model import Violation
from policyd.engine.places import EndUser
from policyd.engine.settings import Setting, Settings, setting_of
from policyd.engine.states import Mode, ModelState, Number, NumberState, Override, UserState


class Attributes(NamedTuple):
    """What a policy may judge of a request in scope."""

    operation: str
    """In the log's words: chat_completion, embedding … Empty: unknown."""
    takes_model: bool
    """Whether a request of the operation names a model."""
    end_user: EndUser
    """The end user that counts: of the places that the key accepts, the first with a valid one."""
    named: Sequence[EndUser]
    """All end users in the places up to that one, in several states: a server may read any."""
    model_state: ModelState
    models: tuple[str, ...]
    """The models that the body and the path name. All of them count."""
    token_limit: Number
    prompt_chars: Number


class Need(Enum):
    """An attribute that a policy needs. The value says how a caller gives it."""

    OPERATION = "method and path"
    END_USER_VALUE = "user, or the value of the place where the end user stands"
    MODEL = "model or model_state"
    TOKEN_LIMIT = "token_limit or token_limit_state"  # noqa: S105  # No password.
    PROMPT_CHARS = "prompt_characters or prompt_characters_state"

    def is_known(self, attributes: Attributes) -> bool:
        """Whether the caller gave it."""
        return _IS_KNOWN[self](attributes)


def _is_value_known(attributes: Attributes) -> bool:
    for one in attributes.named:
        if one.value is None and one.state is UserState.VALID:
            return False
    state = attributes.end_user.state
    return state is not UserState.UNKNOWN and not state.is_unreadable


_IS_KNOWN: dict[Need, Callable[[Attributes], bool]] = {
    Need.OPERATION: lambda given: given.operation != "",
    Need.END_USER_VALUE: _is_value_known,
    Need.MODEL: lambda given: given.model_state is not ModelState.UNKNOWN,
    Need.TOKEN_LIMIT: lambda given: given.token_limit.state is not NumberState.UNKNOWN,
    Need.PROMPT_CHARS: lambda given: given.prompt_chars.state is not NumberState.UNKNOWN,
}


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One policy. Its name stands in settings and flags, so it never changes."""

    name: str
    order: int
    """Its place among all policies: messages, flags and pages come in this order."""
    title: str
    hint: str
    """What it does, in a sentence for people."""
    kind: Kind
    """The kind of its setting."""
    needs: tuple[Need, ...]
    """What decide() looks at. The engine asks it only where all of this is known."""
    subject: str
    """What cannot be checked where the body cannot be read: "user field"."""
    decide: Callable[[Attributes, Any], Violation | None]
    """Whether a request violates the setting's value, as the kind has parsed that. Pure."""
    tooltip: str
    """Why a request has its flag, as a sentence without a full stop, for the console."""
    header: str = ""
    """The header by which a request overrides the setting, in lower case. Empty: there is none."""
    operations: frozenset[str] = frozenset()
    """The operations that it applies to. Empty: all in scope."""
    description: str = ""
    """The description of its flag. Empty: the violation's message."""
    observe: Callable[[str, UserState], str] | None = None
    """What the explanation says of an allowed request, given the place and the state of its end
    user. Only the original policy has it."""
    is_original: bool = False
    """Whether the older fields of protos, tables and explanations are about this policy."""

    @property
    def flag(self) -> str:
        """The type of the flag of a request that violates it."""
        return f"policy_{self.name}"

    def applies_to(self, operation: str) -> bool:
        """Whether it judges requests of an operation. An unknown operation may be any."""
        return not self.operations or not operation or operation in self.operations


class Table:
    """All policies, in their order."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self.policies = tuple(sorted(policies, key=lambda policy: policy.order))
        self.by_name = {policy.name: policy for policy in self.policies}
        self.by_header = {policy.header: policy for policy in self.policies if policy.header}
        self.by_flag = {policy.flag: policy for policy in self.policies}
        self.original = next(policy for policy in self.policies if policy.is_original)
        """The policy that the protos' first fields, and two columns of the store, are about."""

    def original_of(self, settings: Settings) -> Setting:
        """What a level sets for the original policy."""
        return setting_of(settings, self.original.name)

    def with_original(
        self, mode: Mode | None, override: Override | None = None, others: Settings = ()
    ) -> Settings:
        """Settings with this one for the original policy, and those of `others` for the rest."""
        name = self.original.name
        set_now = {**dict(others), name: Setting(mode, "", override)}
        if set_now[name] == Setting():
            del set_now[name]
        return self.in_order(set_now.items())

    def in_order(self, settings: Iterable[tuple[str, Setting]]) -> Settings:
        """Settings in the order of their policies, unknown policies last."""
        order = {policy.name: policy.order for policy in self.policies}
        return tuple(sorted(settings, key=lambda one: (order.get(one[0], math.inf), one[0])))


MODES = {mode.name.lower(): mode for mode in Mode}
OVERRIDES = {override.name.lower(): override for override in Override}


def parse_setting(policy: Policy, text: str) -> Setting:
    """`MODE[:VALUE]`, as people write a setting: "enforce:500", "audit", "off".

    Raises ValueError, which names cause and fix.
    """
    word, _, value = text.partition(":")
    mode = MODES.get(word.strip().lower())
    if mode is None:
        raise ValueError(f"{policy.name} takes {policy.kind.usage}, not {text[:64]!r}")
    if mode is Mode.OFF and not value:
        return Setting(mode)
    return Setting(mode, checked_value(policy, value))


def checked_value(policy: Policy, value: str) -> str:
    """A setting's value in its canonical form. Raises ValueError, which names cause and fix."""
    try:
        return policy.kind.canonical(value)
    except ValueError as error:
        raise ValueError(f"{policy.name}: {error}") from None


def check_settings(table: Table, settings: Settings) -> Settings:
    """Settings as they are stored: known policies, in their order, values in canonical form.

    A setting that sets nothing is left out. Raises ValueError, which names cause and fix.
    """
    names = [name for name, _ in settings]
    if unknown := sorted(set(names) - set(table.by_name)):
        known = ", ".join(table.by_name)
        raise ValueError(f"there is no policy {unknown[0][:64]!r}: the policies are {known}")
    if len(set(names)) < len(names):
        raise ValueError("a policy is set twice: set each once")
    checked = ((name, _checked(table.by_name[name], setting)) for name, setting in settings)
    return table.in_order((name, setting) for name, setting in checked if setting != Setting())


def _checked(policy: Policy, setting: Setting) -> Setting:
    is_judging = setting.mode in (Mode.AUDIT, Mode.ENFORCE)
    value = checked_value(policy, setting.value) if is_judging or setting.value else ""
    # Without a mode, the next level's value counts.
    return setting._replace(value=value if setting.mode else "")
