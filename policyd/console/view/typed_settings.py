"""A key's settings as typed into its form: valid or not, so that the form can be shown again.

The fields of a policy are `mode.NAME`, `value.NAME` and `override.NAME`. A policy whose mode is not
in the form stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

from starlette.datastructures import FormData

from policyd.console.view import labels
from policyd.console.view.forms import text
from policyd.console.view.log_query import moment
from policyd.console.view.text import sentence
from policyd.engine.places import HEADER_PLACE, accept_problem
from policyd.engine.policy import MODES, OVERRIDES, Policy, checked_value
from policyd.engine.settings import ApiKey, Setting, Settings, setting_of
from policyd.engine.states import Mode, Override
from policyd.policies import TABLE

_MODES = f"Choose one of {', '.join(MODES)}, or the server's default."
_OVERRIDES = "Choose who may override: any, tighten_only or locked."
_NO_PLACE = "Choose at least one identifier that counts as a user."


class TypedPolicy(NamedTuple):
    """What was typed for one policy."""

    policy: Policy
    mode: str = ""
    """Empty for the server's default."""
    value: str = ""
    override: str = Override.ANY.name.lower()

    @classmethod
    def of(cls, policy: Policy, setting: Setting) -> Self:
        """A setting as the form shows it."""
        mode = setting.mode.name.lower() if setting.mode else ""
        return cls(policy, mode, setting.value, (setting.override or Override.ANY).name.lower())

    def typed_over(self, form: FormData) -> Self:
        """What was typed into a form; a field that it lacks stays as it is here."""
        if f"mode.{self.policy.name}" not in form:
            return self
        fields = (f"{part}.{self.policy.name}" for part in ("mode", "value", "override"))
        held = (self.mode, self.value, self.override)
        typed = (
            text(form, name).strip() if name in form else before
            for name, before in zip(fields, held, strict=True)
        )
        return type(self)(self.policy, *typed)

    def problems(self) -> dict[str, str]:
        """What is wrong with each field, by the field's name."""
        found = {
            "mode": "" if self.mode in ("", *MODES) else _MODES,
            "value": self._value_problem(),
            "override": "" if self.override in OVERRIDES else _OVERRIDES,
        }
        return {f"{part}.{self.policy.name}": told for part, told in found.items() if told}

    def _value_problem(self) -> str:
        if self.value and not self.mode:
            return "Choose a mode for this value: the server's default would not use it."
        if self.mode not in ("", "off") or self.value:
            try:
                self.policy.kind.canonical(self.value)
            except ValueError as error:
                return sentence(str(error))
        return ""

    def setting(self) -> Setting:
        """The setting, where there are no problems."""
        value = checked_value(self.policy, self.value) if self.value else ""
        override = OVERRIDES[self.override]
        # Where no override is set, any request may override.
        return Setting(MODES.get(self.mode), value, None if override is Override.ANY else override)

    def enforced(self) -> Setting:
        """The setting with the mode enforce. Raises ValueError where the value is not valid."""
        if self.policy.kind.value_usage and not self.value:
            raise ValueError("give the policy a value first")
        value = self.policy.kind.canonical(self.value)
        return Setting(Mode.ENFORCE, value, OVERRIDES.get(self.override))

    def labelled(self) -> Mapping[str, str]:
        """The settings by their names, as the console shows them."""
        mode = MODES.get(self.mode)
        word = labels.MODES[mode][0] if mode else self.mode or "Server's default"
        found = {self.policy.title: f"{word}: {self.value}" if self.value else word}
        if self.policy.header:
            may = OVERRIDES.get(self.override)
            name = f"{self.policy.title}: who may override"
            found[name] = labels.OVERRIDES[may][0] if may else self.override
        return found


@dataclass(frozen=True, slots=True)
class TypedSettings:
    """What was typed for a key."""

    name: str
    policies: tuple[TypedPolicy, ...]
    places: tuple[str, ...]
    """The accepted identifiers that have a box to tick."""
    headers: str
    """The names of the accepted headers, with commas between them."""
    expires: str = ""
    """When the key expires, in UTC; empty for never."""

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """The settings of a key."""
        policies = (_saved(policy, key.policies) for policy in TABLE.policies)
        places = tuple(place for place in key.accept if not place.startswith(HEADER_PLACE))
        headers = (place.removeprefix(HEADER_PLACE) for place in key.accept if place not in places)
        expires = _minute(key.expires_at)
        return cls(key.name, tuple(policies), places, ", ".join(headers), expires)

    @classmethod
    def read(cls, form: FormData, key: ApiKey) -> Self:
        """What a form holds; for a policy that it lacks, the key's setting."""
        policies = (_saved(policy, key.policies).typed_over(form) for policy in TABLE.policies)
        places = tuple(str(place) for place in form.getlist("accept") if place)
        headers = text(form, "accept_headers")
        held = _minute(key.expires_at)
        expires = text(form, "expires").strip() if "expires" in form else held
        return cls(text(form, "name"), tuple(policies), places, headers, expires)

    def accept(self, before: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The accepted identifiers. Those of `before` keep their order, as the first valid one
        counts."""
        names = (
            name.strip().lower().removeprefix(HEADER_PLACE) for name in self.headers.split(",")
        )
        typed = dict.fromkeys((*self.places, *(HEADER_PLACE + name for name in names if name)))
        kept = [place for place in before if place in typed]
        return (*kept, *(place for place in typed if place not in kept))

    def problems(self, key: ApiKey) -> dict[str, str]:
        """What is wrong, by the field's name. What `key` has already may stay, even if only another
        version of policyd accepts it."""
        found: dict[str, str] = {}
        accept = self.accept()
        if problem := accept_problem(accept):
            found["accept"] = sentence(problem) if accept else _NO_PLACE
        for typed in self.policies:
            if typed != _saved(typed.policy, key.policies):
                found |= typed.problems()
        if self._expiry_changes(key) and (problem := self._expiry_problem()):
            found["expires"] = problem
        return found

    def _expiry_changes(self, key: ApiKey) -> bool:
        return self.expires != _minute(key.expires_at)

    def _expiry_problem(self) -> str:
        try:
            has_passed = self.expires != "" and moment(self.expires) <= datetime.now(UTC)
        except ValueError as error:
            return str(error)
        return "This time has passed. Revoke the key to end it now." if has_passed else ""

    def changes(self, key: ApiKey) -> dict[str, Any]:
        """The settings as the store takes them, where there are no problems."""
        typed = {
            one.policy.name: one.setting()
            for one in self.policies
            if one != _saved(one.policy, key.policies)
        }
        policies = TABLE.in_order((dict(key.policies) | typed).items())
        found: dict[str, Any] = {"name": self.name, "policies": policies}
        found["accept"] = self.accept(key.accept)
        if self._expiry_changes(key):
            found["expires_at"] = moment(self.expires) if self.expires else None
        return found

    def labelled(self) -> Mapping[str, str]:
        """Each setting's name and value, as the console shows them."""
        found = {"Name": self.name}
        for typed in self.policies:
            found |= typed.labelled()
        found["Accepted identifiers"] = ", ".join(self.accept()) or "none"
        return found | {"Expires (UTC)": self.expires or "never"}


def _minute(at: datetime | None) -> str:
    """A moment as a browser's input field writes it; "" for none."""
    return at.strftime("%Y-%m-%dT%H:%M") if at else ""


def _saved(policy: Policy, settings: Settings) -> TypedPolicy:
    return TypedPolicy.of(policy, setting_of(settings, policy.name))
