"""Counts and times decisions, where the server that makes them, policyd or a gateway that decides
by itself, serves metrics."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import perf_counter

from policyd.decision_log import results
from policyd.decision_log.record import Record, Verdict
from policyd.decision_log.refused_key import RefusedKey
from policyd.decision_log.results import LoggedResult
from policyd.decision_log.writer import Entry
from policyd.engine import denial
from policyd.engine.states import Mode
from policyd.errors import REASONS, reason_of
from policyd.policies import TABLE
from policyd.telemetry import catalogue
from policyd.telemetry.bounds import OTHER, status
from policyd.telemetry.metrics import Metrics
from policyd.telemetry.tally import Count, Timing

Log = Callable[[Sequence[Entry]], Awaitable[None] | None]

ADAPTERS = ("grpc", "batch", "envoy", "http", "authzen")
"""The ways in which policyd is asked."""
DROPS = ("no_decision", "malformed", "too_many", "other_protocol", "not_logged")
"""Why an entry of Envoy's access log becomes no outcome."""
_VERDICTS = {one: one.name.lower() for one in Verdict}
_MOST = 4096
"""Kinds of decisions that are remembered, at most: a message may quote a client's words."""


class DecisionMetrics:
    """Counts decisions by their entries in the log, and times their steps."""

    def __init__(self, metrics: Metrics, adapters: Sequence[str] = ADAPTERS) -> None:
        """`adapters` are the ways in which decisions are asked for."""
        step = partial(metrics.timing, catalogue.STEP_SECONDS)
        self.describe, self.decide, self._log = step("describe"), step("decide"), step("log")
        self._requests: dict[str, Timing] = {
            adapter: metrics.timing(catalogue.REQUEST_SECONDS, adapter) for adapter in adapters
        }
        self._decisions = metrics.counts(catalogue.DECISIONS)
        self._results = metrics.counts(catalogue.RESULTS)
        self._errors = metrics.counts(catalogue.ERRORS)
        for reason in REASONS:
            self._errors.of(reason)  # So that its first error shows as an increase from 0.
        self._outcomes = metrics.counts(catalogue.OUTCOMES)
        self._dropped = metrics.counts(catalogue.ENTRIES_DROPPED)
        for reason in DROPS if "envoy" in adapters else ():
            self._dropped.of(reason)
        self._refused = metrics.counts(catalogue.REFUSED_KEYS)
        self._by_kind: dict[tuple[object, ...], tuple[Count, ...]] = {}
        """The counts that a decision raises, by all that they depend on."""

    def logging(self, log: Log) -> Log:
        """`log`, timed until its entries are durable."""

        def append(entries: Sequence[Entry]) -> Awaitable[None] | None:
            began = perf_counter()
            durable = log(entries)
            if durable is not None:
                return self._log.until(durable, began)
            self._log.add(perf_counter() - began)
            return None

        return append

    def decided(self, adapter: str, entries: Sequence[Entry], began: float) -> None:
        """Count the decisions of one request by `adapter`, which came at `began`, in seconds."""
        self._requests[adapter].add(perf_counter() - began)
        for entry in entries:
            for count in self._counts(adapter, entry):
                count.pending += 1

    def failed(self, error: Exception, requests: int = 1) -> None:
        """Count requests that get `error` in place of a decision."""
        self._errors.of(reason_of(error)).pending += requests

    def reported(self, entries: Sequence[Entry]) -> None:
        """Count outcomes."""
        for one in entries:
            if not isinstance(one, Record | RefusedKey):
                self._outcomes.of(status(one.status), one.ending.name.lower()).pending += 1

    def dropped(self, reason: str, entries: int) -> None:
        """Count entries of Envoy's access log that became no outcome, for `reason`."""
        self._dropped.of(reason).pending += entries

    def _counts(self, adapter: str, entry: Entry) -> tuple[Count, ...]:
        if isinstance(entry, RefusedKey):
            refused = self._refused.of(entry.reason.name.lower())
            return refused, self._decisions.of(adapter, OTHER, "denied", "key")
        assert isinstance(entry, Record)
        kind = (
            adapter,
            entry.operation,
            entry.verdict,
            entry.status,
            entry.flags,
            entry.results,
            entry.mode,
            entry.source,
            entry.in_scope,
        )
        found = self._by_kind.get(kind)
        if found is None:
            if len(self._by_kind) >= _MOST:
                self._by_kind.clear()
            found = self._by_kind[kind] = tuple(self._counts_of(adapter, entry))
        return found

    def _counts_of(self, adapter: str, record: Record) -> list[Count]:
        verdict = _VERDICTS[record.verdict]
        operation = record.operation or OTHER
        found = results.of(record)
        counts = [self._decisions.of(adapter, operation, verdict, _reason(record, found))]
        for one in found:
            if one.mode is not Mode.OFF and record.in_scope:
                result = _RESULTS.get(one.message, "violated")
                source = one.source.name.lower()
                counts.append(self._results.of(one.policy, one.mode.name.lower(), result, source))
        return counts


_RESULTS: dict[str | None, str] = {None: "passed", "": "failed"}
_REASONS = {denial.UNDECIDED.status: "failure", denial.AMBIGUOUS_PATH.status: "path"}


def _reason(record: Record, found: list[LoggedResult]) -> str:
    """Why a request was denied, or would be: the flag of the first policy that is to blame."""
    if record.verdict is Verdict.ALLOWED:
        return ""
    blamed = Mode.ENFORCE if record.verdict is Verdict.DENIED else Mode.AUDIT
    names = [one.policy for one in found if one.message and one.mode is blamed]
    policy = TABLE.by_name.get(names[0]) if names else None
    return policy.flag if policy else _REASONS.get(record.status, OTHER)
