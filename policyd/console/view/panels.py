"""The panels of a key's settings, one for each policy, made from what the policy declares."""

from collections.abc import Mapping
from typing import NamedTuple

from policyd.console.view.typed_settings import TypedPolicy, TypedSettings
from policyd.engine.policy import Policy
from policyd.engine.settings import Setting, Settings, setting_of
from policyd.engine.states import Mode, Override
from policyd.policies import TABLE


class Panel(NamedTuple):
    """What the template needs for one policy."""

    policy: Policy
    typed: TypedPolicy
    saved: Setting
    default: Mode
    """The server's default mode."""
    problems: Mapping[str, str]
    """What is wrong with each field of the whole form, by its name."""

    @property
    def is_set(self) -> bool:
        """Whether the key sets the policy."""
        return is_set(self.saved)

    @property
    def is_open(self) -> bool:
        """Whether the panel is open when the page appears."""
        is_typed = self.typed != TypedPolicy.of(self.policy, self.saved)
        return self.is_set or is_typed or self.policy.is_original


def panels(
    typed: TypedSettings, saved: Settings, defaults: Settings, problems: Mapping[str, str]
) -> list[Panel]:
    """The panels, in the order of the policies."""
    return [
        Panel(
            one.policy,
            one,
            setting_of(saved, one.policy.name),
            default_mode(one.policy, defaults),
            problems,
        )
        for one in typed.policies
    ]


def default_mode(policy: Policy, defaults: Settings) -> Mode:
    """The mode that a policy has where a key does not set it."""
    return setting_of(defaults, policy.name).mode or Mode.OFF


def is_set(setting: Setting) -> bool:
    """Whether a setting sets anything."""
    return setting._replace(override=setting.override or Override.ANY) != Setting(
        override=Override.ANY
    )


def unknown(settings: Settings) -> Settings:
    """Settings of policies that this version of policyd does not know."""
    return tuple(one for one in settings if one[0] not in TABLE.by_name)
