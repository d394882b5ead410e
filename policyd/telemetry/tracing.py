"""Traces: how long each step of a request took, for a collector that speaks OTLP.

The law: tracing changes no request, and no request waits for it.

- A trace that comes with a request (W3C trace context) is continued, and its parent says whether it
  is sampled; of those that begin here, a share is. The server span settles that once: a request
  that is not sampled makes no spans, and only passes on its place in the trace.
- A finished span goes into a queue, which a thread of its own sends (span_sender.py); a span that
  finds the queue full, or the collector away, is lost and counted.
- No span holds a secret, a body or a header. Text that a client sent is cut. An end user is in it
  only as a keyed hash, where an operator asks for that.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from enum import Enum
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from policyd.errors import SettingsError
from policyd.extras import lacks
from policyd.telemetry.redaction import redacted
from policyd.telemetry.trace_context import (
    TraceContext,
    as_trace_id,
    is_in_share,
    new_span_id,
    new_trace_id,
    read_traceparent,
)

MAX_TEXT = 256
"""Characters of an attribute."""

_URL = re.compile(r"https?://[0-9A-Za-z.\-_\[\]:]+(/[0-9A-Za-z.\-_~/]*)?")
_LEAST_KEY = 16
"""Characters, at least, of the key by which end users are hashed."""

Value = str | int | float | bool


class Kind(Enum):
    """What a span stands for, by OpenTelemetry's names."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"
    INTERNAL = "INTERNAL"


class Finished(NamedTuple):
    """A span that has ended. Times are nanoseconds since 1970."""

    name: str
    kind: Kind
    context: TraceContext
    parent: TraceContext | None
    is_remote: bool
    """Whether the parent is another program's."""
    began: int
    ended: int
    attributes: dict[str, Value]
    error: str
    """What went wrong; empty for nothing."""


class Sender(Protocol):
    """What takes finished spans. See span_sender.py."""

    def put(self, span: Finished) -> None:
        """Take a span, to be sent later. It returns at once and never fails."""

    def close(self) -> None:
        """Send what is queued, within a bounded time."""


class Span:
    """A step of a request. Where that is not sampled, the span only knows its place in the trace.

    A context manager: an exception that ends the block marks the span as failed.
    """

    __slots__ = ("_began", "_is_remote", "_kind", "_parent", "_sender", "attributes", "context",
                 "error", "name")  # fmt: skip

    def __init__(
        self,
        sender: Sender,
        name: str,
        kind: Kind,
        context: TraceContext,
        parent: TraceContext | None,
        began: int,
        *,
        is_remote: bool = False,
    ) -> None:
        self._sender = sender
        self.name = name
        self._kind = kind
        self.context = context
        self._parent = parent
        self._is_remote = is_remote
        self._began = began
        self.attributes: dict[str, Value] = {}
        self.error = ""
        """What went wrong; empty for nothing. One of a bounded set, as collectors count by it."""

    @property
    def is_sampled(self) -> bool:
        """Whether it goes to the collector."""
        return self.context.is_sampled

    @property
    def is_remote(self) -> bool:
        """Whether its parent is another program's."""
        return self._is_remote

    def child(self, name: str, kind: Kind = Kind.INTERNAL, began: int | None = None) -> "Span":
        """A step within this one, which began now, or at `began` nanoseconds since 1970."""
        if not self.context.is_sampled:
            return self
        context = self.context._replace(span_id=new_span_id())
        return Span(self._sender, name, kind, context, self.context, began or time.time_ns())

    def set(self, **attributes: Value) -> None:
        """Set attributes; an underscore in a name stands for a dot, a double one for an underscore.
        Empty ones are left out."""
        if self.context.is_sampled:
            self.set_all({_dotted(name): value for name, value in attributes.items()})

    def set_all(self, attributes: dict[str, Value]) -> None:
        """Set attributes by their own names. Empty ones are left out."""
        for name, value in attributes.items():
            if value != "":
                # A client may have put a secret into the wrong field, such as the model.
                self.attributes[name] = (
                    redacted(value)[:MAX_TEXT] if isinstance(value, str) else value
                )

    def end(self, ended: int | None = None, began: int | None = None) -> None:
        """Note that the step ended, now or at `ended`, and began when the span was made, or at
        `began`: both in nanoseconds since 1970."""
        if not self.context.is_sampled:
            return
        self._sender.put(
            Finished(
                self.name,
                self._kind,
                self.context,
                self._parent,
                self._is_remote,
                began or self._began,
                ended or time.time_ns(),
                self.attributes,
                self.error,
            )
        )

    # Written out: contextlib's base class has no __slots__ in Python 3.11, and so costs a __dict__.
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The span of a request that is not sampled stands for its steps, too.
        if self.context.is_sampled:
            if kind is not None:
                self.error = self.error or kind.__name__
            self.end()


def _dotted(name: str) -> str:
    return "_".join(part.replace("_", ".") for part in name.split("__"))


class Tracer:
    """Begins the span of each request, by the trace that it belongs to.

    Of the traces that begin here, a `share` (0 to 1) is sampled. `users_key` is the key of the hash
    by which spans name end users; without it, they name none.
    """

    def __init__(self, sender: Sender, share: float, users_key: str = "") -> None:
        self._sender = sender
        self._share = share
        self._users_key = users_key.encode()

    def begin(
        self, name: str, traceparent: Sequence[str], given: str = "", began: int | None = None
    ) -> Span:
        """The server span of a request, which began now, or at `began` nanoseconds since 1970.

        `traceparent` are the values of its header; `given` is the trace ID that its client gives in
        policyd's own header, which counts where it has W3C's form.
        """
        parent = read_traceparent(traceparent)
        if parent is None:
            trace_id = as_trace_id(given) or new_trace_id()
            context = TraceContext(trace_id, new_span_id(), is_in_share(trace_id, self._share))
        else:
            context = parent._replace(span_id=new_span_id())
        began = began or time.time_ns()
        return Span(
            *(self._sender, name, Kind.SERVER, context, parent, began), is_remote=parent is not None
        )

    def user(self, end_user: str) -> str:
        """The hash of an end user; empty where spans name none."""
        if not self._users_key or not end_user:
            return ""
        text = end_user.encode("utf-8", "surrogatepass")
        return hmac.digest(self._users_key, text, hashlib.sha256).hex()[:32]

    def close(self) -> None:
        """Send what is left. It takes a few seconds at most."""
        self._sender.close()


def start_tracing(service: str, url: str, share: float, users_key: str = "") -> Tracer | None:
    """The tracer that sends traces of `service` to the collector at `url`; None without a URL.

    Raises SettingsError where OpenTelemetry is not installed.
    """
    if not url:
        return None
    try:
        # OpenTelemetry is an extra, and a server without traces starts sooner without it.
        from policyd.telemetry.span_sender import span_sender
    except ImportError as problem:
        package = problem.name or "opentelemetry"
        if package.startswith("opentelemetry.proto"):
            raise SettingsError(
                "--traces needs files of opentelemetry-proto, and xds-protos has put older ones in "
                "their place: pip install --force-reinstall --no-deps opentelemetry-proto"
            ) from None
        raise SettingsError(f"--traces {lacks(package, 'tracing')}") from None
    return Tracer(span_sender(service, url), share, users_key)


def check_traces(url: str, users_key: str = "") -> None:
    """Check what --traces and --trace-users-file say. Raises SettingsError."""
    if url and not _URL.fullmatch(url):
        raise SettingsError(
            f"--traces takes the URL of a collector, such as http://127.0.0.1:4318, not "
            f"{redacted(url)!r}. A "
            "token for it goes into OTEL_EXPORTER_OTLP_HEADERS"
        )
    if users_key and not url:
        raise SettingsError(
            "--trace-users-file is for spans that name end users: give --traces too"
        )
    if users_key and len(users_key) < _LEAST_KEY:
        raise SettingsError(
            f"--trace-users-file holds {len(users_key)} characters, and end users could be guessed "
            f"by so short a key: put at least {_LEAST_KEY} random ones there"
        )
