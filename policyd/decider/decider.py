"""A request descriptor comes in and a decision goes out, which is in the log by then."""

import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Any

from policyd.decider import log_entries
from policyd.decider.decision_ids import DecisionIds
from policyd.decider.evaluator import Evaluator, settings_of
from policyd.decision_log.record import Outcome
from policyd.decision_log.writer import Entry
from policyd.descriptor import evaluate_request
from policyd.descriptor.body import MAX_RAW_BODY
from policyd.descriptor.body_memory import AT_ONCE, Bodies
from policyd.descriptor.content_encoding import decoded_limit
from policyd.descriptor.headers import NO_HEADERS
from policyd.descriptor.identifiers import BodyAttributes
from policyd.descriptor.pieces import Pieces
from policyd.engine.decision import NO_ROUTE
from policyd.engine.settings import KeySettings, RouteSettings
from policyd.errors import InvalidArgument, InvalidDescriptor
from policyd.keys.defaults import Defaults
from policyd.keys.key_table import KeyTable
from policyd.v1 import policy_pb2 as pb

if TYPE_CHECKING:
    from policyd.decider.access import DecisionAccess
    from policyd.decider.metrics import DecisionMetrics
    from policyd.decider.traces import DecisionTraces
    from policyd.telemetry.tracing import Span

MAX_BATCH = 1000
"""Items in one batch, at most."""
MAX_BATCH_BODIES = 16 * 2**20
"""Bytes to which the raw bodies of one batch may decompress, together."""
MAX_WAIT = 5.0
"""Seconds to wait for a revision that a caller asks for, if its own deadline is not sooner."""


class Decider:
    """Decides by the settings in `keys`; `defaults` hold for policies that a key does not set.

    `log` makes entries durable, at once or when its result is awaited, or raises LogFull. `process`
    is 12 hexadecimal digits that no other process has: the IDs of decisions contain them, after the
    time by `clock`. `bodies` bounds the raw bodies that are read. Where operators ask for that,
    `metrics` counts and times decisions, `access` writes a line for each, and `traces` makes spans
    of them.
    """

    def __init__(
        self,
        keys: KeyTable,
        defaults: Defaults,
        process: str,
        log: Callable[[Sequence[Entry]], Awaitable[None] | None],
        bodies: Bodies,
        clock: Callable[[], float] = time.time,
        metrics: "DecisionMetrics | None" = None,
        access: "DecisionAccess | None" = None,
        traces: "DecisionTraces | None" = None,
    ) -> None:
        self._keys = keys
        self._metrics = metrics
        self._watching = tuple(one for one in (metrics, access) if one is not None)
        self._traces = traces
        self._log = metrics.logging(log) if metrics else log
        self._bodies = bodies
        evaluator = Evaluator(keys, defaults, DecisionIds(process, clock), metrics, traces)
        self._evaluate = evaluator.evaluate

    @property
    def revision(self) -> int:
        """The revision of the settings that it decides by now."""
        return self._keys.revision

    async def reach(self, revision: int, patience: float | None) -> None:
        """Wait for this revision, up to MAX_WAIT, or less where the caller has only `patience`
        seconds left. Raises RevisionNotReached."""
        # A little less than the caller waits, so that it is told the reason.
        wait = MAX_WAIT if patience is None else min(MAX_WAIT, patience * 0.9)
        await self._keys.reach(revision, wait)

    def knows(self, request: pb.EvaluateRequest | pb.CheckKeyRequest) -> bool:
        """Whether the request's key is in force. If it is not, its body need not be read.

        Raises SettingsUnknown.
        """
        return self._settings(request) is not None

    async def batch(
        self,
        requests: Sequence[pb.EvaluateRequest],
        trusted: frozenset[str] = NO_HEADERS,
        *,
        context: Any = None,
    ) -> list[pb.EvaluateResponse | Exception]:
        """Decide each request with the settings at hand, and log the decisions together. Returns
        the answers, or the errors that answer() would raise, in the order of the requests.

        Raises SettingsUnknown, BodiesFull or LogFull where no request gets an answer.
        """
        began = perf_counter()
        self._keys.check_known()
        if self._traces is None:
            results, decided = await self._batch(requests, trusted, [None] * len(requests))
        else:
            with self._traces.batch(requests, context) as spans:
                results, decided = await self._batch(requests, trusted, spans)
        for one in self._watching:
            one.decided("batch", decided, began)
        return results

    def check_key(self, request: pb.CheckKeyRequest) -> pb.CheckKeyResponse:
        """Whether the key is in force, and whether deciding needs the body. Raises
        SettingsUnknown."""
        settings = self._settings(request)
        needs_body = False
        if settings is not None:
            needs_body = evaluate_request.target_of(request).is_in_scope_for(settings.accept)
        return pb.CheckKeyResponse(
            in_force=settings is not None, needs_body=needs_body, revision=self._keys.revision
        )

    async def report(self, outcomes: Sequence[pb.Outcome]) -> pb.ReportOutcomeResponse:
        """Log what became of requests. Raises InvalidArgument or LogFull."""
        if len(outcomes) > MAX_BATCH:
            raise InvalidArgument(f"a report has at most {MAX_BATCH} outcomes, not {len(outcomes)}")
        accepted, rejected = [], []
        for index, outcome in enumerate(outcomes):
            try:
                accepted.append(log_entries.outcome(outcome))
            except InvalidArgument as error:
                rejected.append(pb.RejectedOutcome(index=index, message=str(error)))
        if accepted:
            await self.log_outcomes(accepted)
        return pb.ReportOutcomeResponse(accepted=len(accepted), rejected=rejected)

    async def log_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Log outcomes that are entries already. Raises LogFull."""
        if durable := self._log(outcomes):
            await durable
        if self._metrics is not None:
            self._metrics.reported(outcomes)

    def _settings(self, request: pb.EvaluateRequest | pb.CheckKeyRequest) -> KeySettings | None:
        self._keys.check_known()
        return settings_of(self._keys, *evaluate_request.credential(request))

    def _body_size(self, request: pb.EvaluateRequest) -> int:
        """Bytes that a raw body may have when it is decompressed; 0 where it is not read."""
        if not request.HasField("raw_body") or not self.knows(request):
            return 0
        size = len(request.raw_body.content)
        is_compressed = evaluate_request.content_encoding(request) != ""
        return decoded_limit(size, MAX_RAW_BODY) if is_compressed else size

    async def _batch(
        self,
        requests: Sequence[pb.EvaluateRequest],
        trusted: frozenset[str],
        spans: "Sequence[Span | None]",
    ) -> tuple[list[pb.EvaluateResponse | Exception], list[Entry]]:
        sizes = [self._body_size(request) for request in requests]
        bodies = await self._read_large(requests, sizes)
        results, decided = self._results(requests, trusted, spans, sizes, bodies)
        if decided and (durable := self._append(decided, spans)):
            await durable
        return results, decided

    def _results(
        self,
        requests: Sequence[pb.EvaluateRequest],
        trusted: frozenset[str],
        spans: "Sequence[Span | None]",
        sizes: Sequence[int],
        bodies: Sequence[BodyAttributes | None],
    ) -> tuple[list[pb.EvaluateResponse | Exception], list[Entry]]:
        results: list[pb.EvaluateResponse | Exception] = []
        decided: list[Entry] = []
        parts = zip(requests, spans, accumulate(sizes), bodies, strict=True)
        for request, span, size, body in parts:
            try:
                if size > MAX_BATCH_BODIES:
                    raise InvalidDescriptor(
                        "the batch's raw bodies are too large: send fewer at once"
                    )
                response, record = self._evaluate(request, NO_ROUTE, trusted, span, body)
                decided.append(record)
                results.append(response)
            except Exception as error:  # noqa: BLE001  # An item's error must not affect the others.
                results.append(self._failed(error, span))
        return results, decided

    def _failed(self, error: Exception, span: "Span | None") -> Exception:
        if span is not None:
            span.error = type(error).__name__
        if self._metrics is not None:
            self._metrics.failed(error)
        return error

    async def answer(
        self,
        request: pb.EvaluateRequest,
        route: RouteSettings = NO_ROUTE,
        trusted: frozenset[str] = NO_HEADERS,
        *,
        adapter: str,
        context: Any = None,
    ) -> pb.EvaluateResponse:
        """Decide with the settings at hand, and log the decision: every adapter calls this.

        `route` has the settings that the gateway's operator gives to the request's route, `trusted`
        the headers that may name the end user, `adapter` the name to count it by, `context` that
        of its gRPC call. Raises SettingsUnknown, InvalidDescriptor, RevisionNotReached, BodiesFull
        or LogFull.
        """
        began = perf_counter()
        if self._traces is None:
            response, record = await self._answer(request, route, trusted, None)
        else:
            with self._traces.begin(request, adapter, context) as span:
                response, record = await self._answer(request, route, trusted, span)
        for one in self._watching:
            one.decided(adapter, (record,), began)
        return response

    async def _answer(
        self,
        request: pb.EvaluateRequest,
        route: RouteSettings,
        trusted: frozenset[str],
        span: "Span | None",
    ) -> tuple[pb.EvaluateResponse, Entry]:
        body = None
        if request.HasField("raw_body"):
            (body,) = await self._read_large([request], [self._body_size(request)])
        response, record = self._evaluate(request, route, trusted, span, body)
        if durable := self._append((record,), (span,)):
            await durable
        return response, record

    def _append(
        self, entries: Sequence[Entry], spans: "Sequence[Span | None]"
    ) -> Awaitable[None] | None:
        """Make entries durable, at once or when the result is awaited; `spans` are those of their
        evaluations. Raises LogFull."""
        if self._traces is None:
            return self._log(entries)
        sampled = [span for span in spans if span is not None and span.is_sampled]
        return self._traced_log(entries, sampled) if sampled else self._log(entries)

    async def _traced_log(self, entries: Sequence[Entry], sampled: "Sequence[Span]") -> None:
        assert self._traces is not None
        with self._traces.logging(sampled):
            if durable := self._log(entries):
                await durable

    async def _read_large(
        self, requests: Sequence[pb.EvaluateRequest], sizes: Sequence[int]
    ) -> Sequence[BodyAttributes | None]:
        """The attributes of the raw bodies that take long to read; None for each other request.
        `sizes` are those of _body_size().

        Raises BodiesFull.
        """
        if sum(sizes) <= AT_ONCE:
            return [None] * len(requests)
        size = sum(len(request.raw_body.content) for request in requests)
        attributes: list[BodyAttributes | None] = []
        with self._bodies.hold() as held:
            # The messages are here already, and those that wait for their turn count, too.
            held.grow(size)
            for request, total in zip(requests, accumulate(sizes), strict=True):
                about = evaluate_request.about_raw_body(request)
                is_read = about is not None and self.knows(request) and total <= MAX_BATCH_BODIES
                attributes.append(
                    await self._bodies.read(held, size, Pieces(request.raw_body.content), about)
                    if about and is_read
                    else None
                )
        return attributes
