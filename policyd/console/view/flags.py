"""The flags of a logged request, and what they mean in words."""

from collections.abc import Iterator

from policyd.decision_log import results
from policyd.decision_log.record import Record, Verdict
from policyd.engine.decision import INVALID_OVERRIDE
from policyd.engine.policy import Policy
from policyd.engine.states import Ignored, Mode, UserState
from policyd.policies import TABLE


def types(record: Record) -> list[str]:
    """The types of a request's flags, each once."""
    return list(dict.fromkeys(filter(None, record.flags.split(","))))


def explanation(record: Record, flag: str) -> str:
    """What a flag on a request means, as a sentence or two."""
    if flag == INVALID_OVERRIDE:
        return " ".join(_not_followed(record))
    policy = TABLE.by_flag.get(flag)
    if policy is None:
        return "This version of policyd does not know the policy that set this flag."
    mode = next((one.mode for one in results.of(record) if one.policy == policy.name), None)
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
    names = [one.policy for one in results.of(record) if one.ignored is Ignored.INVALID]
    # Older versions of policyd logged the flag alone.
    for name in names or [TABLE.original.name]:
        if policy := TABLE.by_name.get(name):
            yield _takes(policy)


def _takes(policy: Policy) -> str:
    usage = policy.kind.header_usage
    either, _, other = usage.partition(" or ")
    if other and " " not in either + other:
        return (
            f"The header {policy.header} was neither {either} nor {other}, so it was not followed."
        )
    return f"The header {policy.header} was not followed: it takes {usage}."
