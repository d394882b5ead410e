"""W3C trace context: how one program tells the next which trace a request belongs to.

See https://www.w3.org/TR/trace-context/. A malformed value counts as absent.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX = 256
"""Characters of a header that is read."""
_SAMPLED = 1
_TRACE_ID = re.compile("[0-9a-f]{32}")
_LOW = 2**64 - 1


class TraceContext(NamedTuple):
    """A place in a trace: the trace, and the span that is the parent of what comes next."""

    trace_id: int
    span_id: int
    is_sampled: bool

    @property
    def trace(self) -> str:
        """The trace's ID, as logs and collectors show it."""
        return f"{self.trace_id:032x}"

    @property
    def header(self) -> str:
        """The value of the header traceparent."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.is_sampled:02x}"


def read_traceparent(values: Sequence[str]) -> TraceContext | None:
    """What the values of the header say: None unless there is one, and it is well-formed."""
    if len(values) != 1 or len(values[0]) > _MAX:
        return None
    found = _FORM.fullmatch(values[0].strip())
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    # A later version may have more members. The one that is known has none.
    if version == "ff" or (version == "00" and more):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def as_trace_id(given: str) -> int:
    """A trace ID that was given in another header, where it has this form; else 0."""
    return int(given, 16) if _TRACE_ID.fullmatch(given) else 0


def new_trace_id() -> int:
    """A trace ID that no other trace has."""
    return random.getrandbits(128) or 1  # It keeps no secret.


def new_span_id() -> int:
    """A span ID that no other span of its trace has."""
    return random.getrandbits(64) or 1  # It keeps no secret.


def is_in_share(trace_id: int, share: float) -> bool:
    """Whether a trace is among the sampled `share` (0 to 1) of all: by its ID, so that every
    program that samples the same share keeps the same traces."""
    return (trace_id & _LOW) < round(share * 2**64)
