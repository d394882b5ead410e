"""A decision as the log has it, and what became of its request.

Records are msgspec structs: one form for what the spool writes, the store keeps and people read.
"""

from datetime import UTC, datetime
from enum import IntEnum

import msgspec

from policyd.model import Ignored, Mode, Source, UserState

MAX_TEXT = 256
"""Characters of a text in a record; what is longer is cut."""
MAX_AGENT = 512
"""Characters of a user agent or a path."""
FLAG_SETS = (
    "policy_enforce_user_ids",
    "invalid_override",
    "policy_enforce_user_ids,invalid_override",
)
"""What `flags` can be, where it is not empty: see decision.py."""


class Verdict(IntEnum):
    """How a request fared, in a word."""

    ALLOWED = 1
    WOULD_DENY = 2
    DENIED = 3


class Ending(IntEnum):
    """How a request that was allowed ended."""

    UNKNOWN = 0
    COMPLETE = 1
    CLIENT_LEFT = 2
    UPSTREAM_BROKE = 3
    NO_ANSWER = 4


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag="O"):
    """What became of one request that was allowed. None and "" stand for what is not known."""

    decision_id: str
    ending: Ending = Ending.UNKNOWN
    status: int = 0
    """Of the upstream's answer. 0: there was none."""
    first_byte_us: int | None = None
    """Microseconds from the question until the first byte of the upstream's answer."""
    duration_us: int | None = None
    """Microseconds from the question until its last byte."""
    openai_id: str = ""
    model: str = ""
    """As the answer names it."""
    organization: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Those of the input that the upstream had in its cache."""
    cost_nano: int | None = None
    """Billionths of a US dollar, by the public prices of its day. None: not known."""


class Record(msgspec.Struct, frozen=True, array_like=True, tag="D"):
    """One decision. It holds no prompt, no answer and no key."""

    id: str
    verdict: Verdict
    status: int
    """Of the denial. 0: the request was allowed."""
    key_id: str
    """Empty: no key in force was given."""
    operation: str
    mode: Mode | None
    source: Source | None
    ignored: Ignored
    in_scope: bool
    user_state: UserState
    """Of the identifier that decided."""
    identifier: str
    summary: str
    """The explanation in words."""
    flags: str
    """The types of the flags, separated by commas."""
    revision: int
    body_user: UserState
    """What was known of `user`, and ..."""
    body_safety_identifier: UserState
    """... of `safety_identifier`: with `overrides`, enough to decide once more."""
    overrides: str
    """What the override headers asked for, in alphabetical order: "false", "true", "invalid"."""
    end_user: str = ""
    model: str = ""
    """As the request names it."""
    method: str = ""
    path: str = ""
    """Without a query string."""
    source_ip: str = ""
    user_agent: str = ""
    organization: str = ""
    trace_id: str = ""
    request_id: str = ""
    sample: bool = False
    """Whether it is no real request, but one that `policyd demo` made up."""
    outcome: Outcome | None = None
    """None: nobody has reported it yet."""

    @property
    def time(self) -> datetime:
        """When it was decided: its ID begins with the millisecond."""
        return moment(self.id)


def moment(decision_id: str) -> datetime:
    """The moment that a decision's ID begins with, in UTC."""
    return datetime.fromtimestamp(int(decision_id[:12], 16) / 1000, UTC)


def first_id(at: datetime) -> str:
    """What no ID of a decision made at `at` or later is less than."""
    milliseconds = min(max(int(at.timestamp() * 1000), 0), 2**48 - 1)
    return f"{milliseconds:012x}"
