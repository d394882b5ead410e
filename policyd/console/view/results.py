"""What each policy found of a logged request, and what its flags mean, in words."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from policyd.console.view import labels
from policyd.decision_log.record import Record, Verdict
from policyd.engine.decision import INVALID_OVERRIDE
from policyd.engine.model import Ignored, Mode, Source, UserState
from policyd.engine.policy import Policy
from policyd.policies import TABLE


class Found(NamedTuple):
    """What one policy found."""

    name: str
    mode: Mode
    value: str
    source: Source
    ignored: Ignored
    message: str
    """Of the violation; empty where there is none."""

    @property
    def policy(self) -> Policy | None:
        """The policy, if this version of policyd knows it."""
        return TABLE.by_name.get(self.name)

    @property
    def title(self) -> str:
        """The policy's title, or else its name."""
        return labels.POLICIES.get(self.name, self.name)


def found(record: Record) -> list[Found]:
    """What the policies found of a request, in their order."""
    if record.results:
        return [_read(*one[:6]) for one in json.loads(record.results)]
    if record.mode is None or record.source is None:
        return []  # Its key was refused, so that no policy applied.
    original = TABLE.original
    message = original.description if original.flag in flags(record) else ""
    return [Found(original.name, record.mode, "", record.source, record.ignored, message)]


def _read(
    name: str, mode: int, value: str, source: int, ignored: int, message: str | None
) -> Found:
    return Found(name, Mode(mode), value, Source(source), Ignored(ignored), message or "")


def flags(record: Record) -> list[str]:
    """The types of a request's flags, each once."""
    return list(dict.fromkeys(filter(None, record.flags.split(","))))


def explanation(record: Record, flag: str) -> str:
    """What a flag on a request means, as a sentence or two."""
    if flag == INVALID_OVERRIDE:
        return " ".join(_not_followed(record))
    policy = TABLE.by_flag.get(flag)
    if policy is None:
        return "This version of policyd does not know the policy that set this flag."
    mode = next((one.mode for one in found(record) if one.name == policy.name), None)
    cause = _cause(record, policy)
    if record.verdict is Verdict.DENIED and mode is not Mode.AUDIT:
        return f"{cause}. It was blocked, as {policy.title} is enforced."
    if record.verdict is Verdict.DENIED:
        return f"{cause}. {policy.title} only watched: another policy blocked the request."
    return f"{cause}. It passed, as {policy.title} only watched; enforcing would have blocked it."


def _cause(record: Record, policy: Policy) -> str:
    if record.user_state.is_unreadable and policy.subject:
        return f"The body of this request could not be read, so its {policy.subject} is unknown"
    if policy.is_original and record.user_state is not UserState.ABSENT:
        return f"This request carried no usable {record.identifier or 'user'}"
    return policy.tooltip


def _not_followed(record: Record) -> Iterator[str]:
    """A sentence for each header that was not valid."""
    ignored = [one.policy for one in found(record) if one.ignored is Ignored.INVALID]
    # Older versions of policyd logged the flag without it.
    for policy in filter(None, ignored or [TABLE.original]):
        usage = policy.kind.header_usage
        either, _, other = usage.partition(" or ")
        yield (
            f"The header {policy.header} was neither {either} nor {other}, so it was not followed."
            if other and " " not in either + other
            else f"The header {policy.header} was not followed: it takes {usage}."
        )
