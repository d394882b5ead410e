"""What each policy found of a request, as a record keeps it: one text, in JSON.

A request that only the original policy was to judge has no such text, as the record's other fields
say the same: so most records stay short.
"""

from collections.abc import Iterable

import msgspec

from policyd.decision_log.record import MAX_RESULTS, Record
from policyd.engine.model import MAX_TOLD, Result, cut
from policyd.engine.states import Ignored, Mode, Source
from policyd.policies import TABLE


class LoggedResult(msgspec.Struct, frozen=True, array_like=True):
    """What one policy found. Further fields, which a newer version may have logged, are ignored."""

    policy: str
    mode: Mode
    value: str
    source: Source
    ignored: Ignored
    message: str | None = None
    """What the request violates, in the words for its client; None for nothing; "" where the policy
    could not judge."""


_decode = msgspec.json.Decoder(list[LoggedResult]).decode


def text(results: Iterable[Result]) -> str:
    """The results as a record keeps them: as many as it has room for."""
    kept = [_logged(one) for one in results]
    if all(one.policy == TABLE.original.name for one in kept):
        return ""
    while len(found := msgspec.json.encode(kept).decode()) > MAX_RESULTS:
        kept.pop()
    return found


def _logged(result: Result) -> LoggedResult:
    message = result.violation.message if result.violation else None
    if result.has_failed:
        message = ""
    return LoggedResult(
        result.policy,
        result.mode,
        cut(result.value, MAX_TOLD),
        result.source,
        result.ignored,
        None if message is None else cut(message, MAX_TOLD),
    )


def of(record: Record) -> list[LoggedResult]:
    """What each policy that was set found of a logged request."""
    if record.results:
        return _decode(record.results)
    if record.mode is None or record.source is None:
        return []
    policy = TABLE.original
    is_violated = policy.flag in record.flags.split(",")
    message = policy.description if is_violated else None
    return [LoggedResult(policy.name, record.mode, "", record.source, record.ignored, message)]
