"""PolicyService: a request descriptor comes in, a decision goes out, and the log has it by then."""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from policyd.decision_log.writer import Entry
from policyd.descriptor import evaluate_request
from policyd.descriptor.body import MAX_RAW_BODY
from policyd.descriptor.body_memory import SMALL, Bodies
from policyd.descriptor.content_encoding import decoded_limit
from policyd.descriptor.headers import NO_HEADERS
from policyd.engine.decision import NO_ROUTE
from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import KeySettings, RouteSettings
from policyd.engine.states import Credential
from policyd.errors import InvalidArgument, InvalidDescriptor, RevisionNotReached
from policyd.keys import api_key
from policyd.keys.defaults import Defaults
from policyd.keys.key_table import KeyTable
from policyd.policies import decide
from policyd.services import log_entries
from policyd.services.decision_ids import DecisionIds
from policyd.services.errors import status_of
from policyd.services.policy_failures import PolicyFailures
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceServicer

if TYPE_CHECKING:
    from policyd.services.decision_access import DecisionAccess
    from policyd.services.decision_metrics import DecisionMetrics
    from policyd.services.decision_traces import DecisionTraces
    from policyd.telemetry.tracing import Span

_Result = TypeVar("_Result")
_UNTRACED = nullcontext()
_CALLER = "grpc"
"""The kind of the callers of PolicyService."""
MAX_BATCH = 1000
"""Items in one BatchEvaluate."""
MAX_BATCH_BODIES = 16 * 2**20
"""Bytes that the raw bodies of one BatchEvaluate may decompress to."""
MAX_WAIT = 5.0
"""Seconds to wait for a revision that a caller asks for, if its own deadline is not sooner."""


class PolicyServicer(PolicyServiceServicer):
    """Decides with the settings in `keys`; `defaults` hold for keys that set no such policy, and
    say which headers that callers of PolicyService send may name the end user.

    `log` makes entries durable, at once or when its result is awaited, or raises LogFull. `process`
    is 12 hexadecimal digits that no other process has: the IDs of decisions contain them, behind
    the time of `clock`. `bodies` bounds the raw bodies that are read. `metrics` count and time what
    it does, `access` writes a line of it, and `traces` make spans of it, where operators ask for
    that.
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
        self._defaults = defaults
        self._metrics = metrics
        self._watching = tuple(one for one in (metrics, access) if one is not None)
        self._traces = traces
        self._log = metrics.logging(log) if metrics else log
        self._read = (
            metrics.describe.timed(evaluate_request.read) if metrics else evaluate_request.read
        )
        self._decide = metrics.decide.timed(decide) if metrics else decide
        self._ids = DecisionIds(process, clock)
        self._bodies = bodies
        self.failures = PolicyFailures()

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        """See policy.proto."""
        if request.min_revision > self._keys.revision:
            await self._reach(request.min_revision, context)
        trusted = self._defaults.trusted(_CALLER)
        return await self.answer(request, trusted=trusted, adapter="grpc", context=context)

    async def BatchEvaluate(
        self, request: pb.BatchEvaluateRequest, context: Any
    ) -> pb.BatchEvaluateResponse:
        """See policy.proto."""
        began = perf_counter()
        self._keys.check_known()
        items = request.items
        if len(items) > MAX_BATCH:
            raise InvalidArgument(f"a batch has at most {MAX_BATCH} items, not {len(items)}")
        if len({item.id for item in items}) < len(items):
            raise InvalidArgument("each item of a batch needs an id of its own")
        wanted = max((item.request.min_revision for item in items), default=0)
        if wanted > self._keys.revision:
            with suppress(RevisionNotReached):  # The items that ask for it each get the error.
                await self._reach(wanted, context)
        requests = [item.request for item in items]
        if self._traces is None:
            results, decided = await self._batch(items, requests, [None] * len(items))
        else:
            with self._traces.batch(requests, context) as spans:
                results, decided = await self._batch(items, requests, spans)
        for one in self._watching:
            one.decided("batch", decided, began)
        return pb.BatchEvaluateResponse(results=results)

    async def CheckKey(self, request: pb.CheckKeyRequest, context: Any) -> pb.CheckKeyResponse:
        """See policy.proto."""
        settings = self._settings(request)
        needs_body = False
        if settings is not None:
            needs_body = evaluate_request.target_of(request).is_in_scope_for(settings.accept)
        return pb.CheckKeyResponse(
            in_force=settings is not None, needs_body=needs_body, revision=self._keys.revision
        )

    def knows(self, request: pb.EvaluateRequest | pb.CheckKeyRequest) -> bool:
        """Whether the request's key is in force. If it is not, its body need not be read.

        Raises SettingsUnknown.
        """
        return self._settings(request) is not None

    def _settings(self, request: pb.EvaluateRequest | pb.CheckKeyRequest) -> KeySettings | None:
        self._keys.check_known()
        credential, key = evaluate_request.credential(request)
        if credential is not Credential.GIVEN:
            return None
        return self._keys.settings(api_key.digest(key))

    def _body_size(self, request: pb.EvaluateRequest) -> int:
        """Bytes that reading a raw body may take, counted decompressed; 0 where it is not read."""
        if not request.HasField("raw_body") or not self.knows(request):
            return 0
        size = len(request.raw_body.content)
        is_compressed = evaluate_request.content_encoding(request) != ""
        return decoded_limit(size, MAX_RAW_BODY) if is_compressed else size

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        """See policy.proto."""
        if len(request.outcomes) > MAX_BATCH:
            raise InvalidArgument(
                f"a report has at most {MAX_BATCH} outcomes, not {len(request.outcomes)}"
            )
        accepted, rejected = [], []
        for index, outcome in enumerate(request.outcomes):
            try:
                accepted.append(log_entries.outcome(outcome))
            except InvalidArgument as error:
                rejected.append(pb.RejectedOutcome(index=index, message=str(error)))
        if accepted and (durable := self._log(accepted)):
            await durable
        if self._metrics is not None:
            self._metrics.reported(accepted)
        return pb.ReportOutcomeResponse(accepted=len(accepted), rejected=rejected)

    async def _reach(self, revision: int, context: Any) -> None:
        left = context.time_remaining()
        # A little less than the caller waits, so that it gets the reason.
        await self._keys.reach(revision, MAX_WAIT if left is None else min(MAX_WAIT, left * 0.9))

    async def _batch(
        self, items: Any, requests: list[pb.EvaluateRequest], spans: "Sequence[Span | None]"
    ) -> tuple[list[pb.BatchEvaluateResult], list[Entry]]:
        results, decided = await self._reading(requests, self._results, items, spans)
        if decided:
            await self._append(decided, spans)
        return results, decided

    def _results(
        self, items: Any, spans: "Sequence[Span | None]"
    ) -> tuple[list[pb.BatchEvaluateResult], list[Entry]]:
        results = []
        decided: list[Entry] = []
        bodies = 0
        for item, span in zip(items, spans, strict=True):
            bodies += self._body_size(item.request)
            results.append(self._result(item, bodies, decided, span))
        return results, decided

    def _result(
        self, item: pb.BatchEvaluateItem, bodies: int, decided: list[Entry], span: "Span | None"
    ) -> pb.BatchEvaluateResult:
        try:
            if bodies > MAX_BATCH_BODIES:
                raise InvalidDescriptor("the batch's raw bodies are too large: send fewer at once")
            trusted = self._defaults.trusted(_CALLER)
            response, record = self._evaluate(item.request, NO_ROUTE, trusted, span)
            decided.append(record)
            return pb.BatchEvaluateResult(id=item.id, response=response)
        except Exception as error:  # noqa: BLE001  # An item's error must not affect the others.
            if span is not None:
                span.error = type(error).__name__
            if self._metrics is not None:
                self._metrics.failed(error)
            code, message, reason = status_of(error)
            status = pb.ItemStatus(code=code.value[0], message=message, reason=reason)
            return pb.BatchEvaluateResult(id=item.id, status=status)

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
        work = (self._evaluate, request, route, trusted, span)
        response, record = await self._reading([request], *work)
        await self._append((record,), (span,))
        return response, record

    async def _append(self, entries: Sequence[Entry], spans: "Sequence[Span | None]") -> None:
        """Make entries durable; `spans` are those of their evaluations. Raises LogFull."""
        step: AbstractContextManager[None] = _UNTRACED
        if self._traces is not None:
            sampled = [span for span in spans if span is not None and span.is_sampled]
            step = self._traces.logging(sampled) if sampled else _UNTRACED
        with step:
            if durable := self._log(entries):
                await durable

    async def _reading(
        self,
        requests: list[pb.EvaluateRequest],
        work: Callable[..., _Result],
        *arguments: Any,
    ) -> _Result:
        """Do `work`, which reads the raw bodies of `requests`. Raises BodiesFull."""
        decoded = sum(map(self._body_size, requests))
        if decoded <= SMALL:
            return work(*arguments)
        size = sum(len(request.raw_body.content) for request in requests)
        with self._bodies.hold() as held:
            # The messages are here already, and those that wait for their turn count, too.
            held.grow(size)
            decoded = min(decoded, MAX_BATCH_BODIES) if decoded > size else 0
            return await self._bodies.do(held, size, decoded, work, *arguments)

    def _evaluate(
        self,
        request: pb.EvaluateRequest,
        route: RouteSettings,
        trusted: frozenset[str],
        span: "Span | None",
    ) -> tuple[pb.EvaluateResponse, Entry]:
        if span is None or self._traces is None:
            return self._decided(request, route, trusted)
        with span.child("decide"):
            response, record = self._decided(request, route, trusted, span.context.trace)
        self._traces.decided(span, record, response.trace_id)
        return response, record

    def _decided(
        self,
        request: pb.EvaluateRequest,
        route: RouteSettings,
        trusted: frozenset[str],
        trace_id: str = "",
    ) -> tuple[pb.EvaluateResponse, Entry]:
        """The decision, and the entry of the log; `trace_id` is logged where the request gives
        none."""
        revision = self._keys.revision
        if request.min_revision > revision:
            raise RevisionNotReached(f"settings are at revision {revision}: ask again")
        settings = self._settings(request)
        # A request without a valid key is denied whatever its body holds.
        accept = route.accept or (settings.accept if settings else IDENTIFIERS)
        reading = self._read(
            request, reads_body=settings is not None, accept=accept, trusted=trusted
        )
        if trace_id and not reading.trace_id:
            reading = reading._replace(trace_id=trace_id)
        decision_input = reading.decision_input
        decision = self._decide(decision_input, settings, self._defaults.policies, route)
        if decision.missing:
            raise InvalidDescriptor("; ".join(decision.missing))
        if decision.failures:
            self.failures.add(decision.failures)
        response = pb.EvaluateResponse()
        answer = evaluate_request.answer(decision)
        response.CopyFrom(answer)
        response.decision_id = (
            self._ids.repeatable(request, answer) if request.idempotency_key else self._ids.next()
        )
        response.revision = revision
        if settings is not None:
            response.api_key_id = settings.key_id
        # Without a key nothing tells that an endpoint is out of scope for it.
        if decision_input.target.path and (settings is None or decision.explanation.in_scope):
            response.upstream_path = decision_input.target.path
        if reading.trace_id:
            response.trace_id = reading.trace_id
        return response, log_entries.record(request, reading, decision, response)
