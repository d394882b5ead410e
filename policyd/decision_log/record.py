"""A decision as the log has it, and what became of its request.

Records are msgspec structs: one form for what the spool writes, the store keeps and people read.
"""

import re
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated

import msgspec

from policyd.engine.model import Ignored, Mode, Source, UserState

MAX_TEXT = 256
"""Characters of a text in a record; what is longer is cut."""
MAX_AGENT = 512
"""Characters of a user agent or a path."""
MAX_TIME = 2**40
"""Microseconds that a request may take: twelve days."""
MAX_TOKENS = 10**9
"""Tokens that a request may take."""
FLAG_SETS = (
    "policy_enforce_user_ids",
    "invalid_override",
    "policy_enforce_user_ids,invalid_override",
)
"""What `flags` can be, where it is not empty: see decision.py."""

_ID = re.compile("[0-9a-f]{32}")
_LAST = f"{253402300799999:012x}"
"""What the ID of a decision of the year 9999 begins with at most."""
# What is read from a file is checked, so that nothing the store cannot take gets as far as that.
DecisionId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_Agent = Annotated[str, msgspec.Meta(max_length=MAX_AGENT)]
_Name = Annotated[str, msgspec.Meta(max_length=32)]
_Status = Annotated[int, msgspec.Meta(ge=0, le=999)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


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

    decision_id: DecisionId
    ending: Ending = Ending.UNKNOWN
    status: _Status = 0
    """Of the upstream's answer. 0: there was none."""
    first_byte_us: _Time | None = None
    """Microseconds from the question until the head of the upstream's answer was in."""
    duration_us: _Time | None = None
    """Microseconds from the question until its last byte, or until it ended otherwise."""
    openai_id: _Text = ""
    model: _Text = ""
    """As the answer names it."""
    organization: _Text = ""
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cached_tokens: _Tokens | None = None
    """Those of the input that the upstream had in its cache."""
    cost_nano: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | None = None
    """Billionths of a US dollar, by the public prices of its day. None: not known."""
    # Last, so that what an older policyd has left in the spool is still read.
    cache_write_tokens: _Tokens | None = None
    """Those of the input that the upstream has put into its cache."""


class Record(msgspec.Struct, frozen=True, array_like=True, tag="D"):
    """One decision. It holds no prompt, no answer and no key."""

    id: DecisionId
    verdict: Verdict
    status: _Status
    """Of the denial. 0: the request was allowed."""
    key_id: _Name
    """Empty: no key in force was given. Such requests are logged no longer: see refused_key.py."""
    operation: _Name
    mode: Mode | None
    source: Source | None
    ignored: Ignored
    in_scope: bool
    user_state: UserState
    """Of the identifier that decided."""
    identifier: _Name
    summary: Annotated[str, msgspec.Meta(max_length=500)]
    """The explanation in words."""
    flags: Annotated[str, msgspec.Meta(max_length=100)]
    """The types of the flags, separated by commas."""
    revision: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    body_user: UserState
    """What was known of `user`, and ..."""
    body_safety_identifier: UserState
    """... of `safety_identifier`: with `overrides`, enough to decide once more."""
    overrides: _Name
    """What the override headers asked for, in alphabetical order: "false", "true", "invalid"."""
    end_user: _Text = ""
    model: _Text = ""
    """As the request names it."""
    method: _Text = ""
    path: _Agent = ""
    """Without a query string."""
    source_ip: _Text = ""
    user_agent: _Agent = ""
    organization: _Text = ""
    trace_id: Annotated[str, msgspec.Meta(max_length=100)] = ""
    request_id: _Text = ""
    sample: bool = False
    """Whether it is no real request, but one that `policyd demo` made up."""
    outcome: Outcome | None = None
    """None: nobody has reported it yet."""

    @property
    def is_key_refused(self) -> bool:
        """Whether its key was refused, so that no policy was asked."""
        return not self.key_id

    @property
    def has_unnamed_user(self) -> bool:
        """Whether the request named a user of which only that much is known."""
        return not self.end_user and self.user_state is UserState.VALID

    @property
    def time(self) -> datetime:
        """When it was decided: its ID begins with the millisecond."""
        return moment(self.id)


def is_decision_id(text: str) -> bool:
    """Whether this is an ID such as policyd gives to decisions."""
    return _ID.fullmatch(text) is not None and text[:12] <= _LAST


def moment(decision_id: str) -> datetime:
    """The moment that a decision's ID begins with, in UTC."""
    return datetime.fromtimestamp(int(decision_id[:12], 16) / 1000, UTC)


def first_id(at: datetime) -> str:
    """What no ID of a decision made at `at` or later is less than."""
    milliseconds = min(max(int(at.timestamp() * 1000), 0), 2**48 - 1)
    return f"{milliseconds:012x}"
