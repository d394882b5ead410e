"""A decision as the log has it, and the outcome of its request.

Records are msgspec structs, written as JSON arrays: the spool, the store and the export share them.
Fields are only ever added at the end, with a default, so that entries which an older version has
left in the spool are still read. An older version reads those of a newer one, too, without the
fields that it does not know, but counts an entry as lost where a text is longer than it allows.
"""

import re
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated

import msgspec

from policyd.engine.states import Ignored, Mode, ModelState, Source, UserState

MAX_TEXT = 256
"""Characters of a text in a record. Longer texts are cut."""
MAX_AGENT = 512
"""Characters of a user agent or a path."""
MAX_TIME = 2**40
"""Microseconds that a request may take: twelve days."""
MAX_TOKENS = 10**9
"""Tokens that a request may take."""
MAX_PLACE = 128
"""Characters of the place of an end-user identifier."""
MAX_SUMMARY = 500
"""Characters of an explanation, and of all flags together."""
MAX_ASKED = 1000
"""Characters of `end_users` and of `header_overrides`."""
MAX_RESULTS = 16_000
"""Characters of `results`."""
MAX_NUMBER = 10**18
"""A larger number of tokens or characters counts as this one."""
ABSENT = -1
INVALID = -2
"""They stand for a number that a request does not have, or that is not a number."""

_ID = re.compile("[0-9a-f]{32}")
_LAST = f"{253402300799999:012x}"
"""The first twelve digits of the last ID of the year 9999."""
# No struct here can refer to itself, so the garbage collector need not know them (gc=False). What
# is read from a file is checked, so that the store is given nothing that it cannot take.
DecisionId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_Agent = Annotated[str, msgspec.Meta(max_length=MAX_AGENT)]
_Name = Annotated[str, msgspec.Meta(max_length=32)]
_Status = Annotated[int, msgspec.Meta(ge=0, le=999)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_Summary = Annotated[str, msgspec.Meta(max_length=MAX_SUMMARY)]
_Asked = Annotated[str, msgspec.Meta(max_length=MAX_ASKED)]
_Number = Annotated[int, msgspec.Meta(ge=INVALID, le=MAX_NUMBER)]


class Verdict(IntEnum):
    """The decision in a word."""

    # As the numbers of engine/states.py do: it is looked up for each decision that is counted.
    __hash__ = int.__hash__

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


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag="O", gc=False):
    """What became of one request that was allowed. None and "" mean: not known."""

    decision_id: DecisionId
    ending: Ending = Ending.UNKNOWN
    status: _Status = 0
    """The status of the upstream's answer. 0: there was none."""
    first_byte_us: _Time | None = None
    """Microseconds from the request until the head of the upstream's answer had arrived."""
    duration_us: _Time | None = None
    """Microseconds from the request until the answer's last byte, or until it ended otherwise."""
    openai_id: _Text = ""
    model: _Text = ""
    """The model, as the answer names it."""
    organization: _Text = ""
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cached_tokens: _Tokens | None = None
    """Tokens of the input that the upstream had in its cache."""
    cost_nano: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | None = None
    """Billionths of a US dollar, by the public prices of the request's day. None: not known."""
    # Last: entries that an older version has left in the spool end before it.
    cache_write_tokens: _Tokens | None = None
    """Tokens of the input that the upstream has put into its cache."""


class Record(msgspec.Struct, frozen=True, array_like=True, tag="D", gc=False):
    """One decision. It holds no prompt, no answer and no key."""

    id: DecisionId
    verdict: Verdict
    status: _Status
    """The status of the denial. 0: the request was allowed."""
    key_id: _Name
    """Empty: a refused key, which only older versions logged here. See refused_key.py."""
    operation: _Name
    mode: Mode | None
    source: Source | None
    ignored: Ignored
    in_scope: bool
    user_state: UserState
    """The state of the identifier that decided."""
    identifier: Annotated[str, msgspec.Meta(max_length=MAX_PLACE)]
    summary: _Summary
    """The explanation in words."""
    flags: _Summary
    """The types of the flags, separated by commas."""
    revision: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    body_user: UserState
    """The state of `user`, and ..."""
    body_safety_identifier: UserState
    """... of `safety_identifier`: with `overrides`, enough to decide again by other settings."""
    overrides: _Name
    """The values of the override headers, in alphabetical order: "false", "true", "invalid"."""
    end_user: _Text = ""
    model: _Text = ""
    """The model, as the request names it."""
    method: _Text = ""
    path: _Agent = ""
    """Without a query string."""
    source_ip: _Text = ""
    user_agent: _Agent = ""
    organization: _Text = ""
    trace_id: Annotated[str, msgspec.Meta(max_length=100)] = ""
    request_id: _Text = ""
    sample: bool = False
    """Whether `policyd demo` made the request up."""
    outcome: Outcome | None = None
    """None: no gateway has reported it yet."""
    token_limit: _Number | None = None
    """The tokens that the request allows the answer, of all choices together. ABSENT, INVALID;
    None: not known."""
    prompt_chars: _Number | None = None
    """The characters of the prompt, in the same way."""
    model_state: ModelState = ModelState.UNKNOWN
    end_users: _Asked = ""
    """The states of the further places of an end user, as a JSON object. "": not known."""
    header_overrides: _Asked = ""
    """What the override headers of further policies asked for: a JSON object with a list of values
    for each header; "" where there are none."""
    results: Annotated[str, msgspec.Meta(max_length=MAX_RESULTS)] = ""
    """The results of all policies that are set, as a JSON array: for each, [policy, mode, value,
    source, ignored, message or null]. "": only policies.ORIGINAL is set, and the fields above are
    its result."""

    @property
    def is_key_refused(self) -> bool:
        """Whether the request had a refused key, so that no policy applied to it."""
        return not self.key_id

    @property
    def has_unnamed_user(self) -> bool:
        """Whether the request named an end user that the log does not know."""
        return not self.end_user and self.user_state is UserState.VALID

    @property
    def time(self) -> datetime:
        """When it was decided. The ID begins with the millisecond."""
        return moment(self.id)


def given(number: int | None) -> int | None:
    """The number that a request gives: a record's, where it is neither ABSENT nor INVALID."""
    return None if number is None or number < 0 else number


def is_decision_id(text: str) -> bool:
    """Whether this is an ID of the form that policyd gives to decisions."""
    return _ID.fullmatch(text) is not None and text[:12] <= _LAST


def moment(decision_id: str) -> datetime:
    """The moment with which a decision's ID begins, in UTC."""
    return datetime.fromtimestamp(int(decision_id[:12], 16) / 1000, UTC)


def first_id(at: datetime) -> str:
    """The lower bound of the IDs of decisions made at `at` or later."""
    milliseconds = min(max(int(at.timestamp() * 1000), 0), 2**48 - 1)
    return f"{milliseconds:012x}"
