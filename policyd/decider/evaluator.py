"""One request is evaluated: a request descriptor -> its decision, and the entry of the log."""

from typing import TYPE_CHECKING

from policyd.decider import log_entries
from policyd.decider.decision_ids import DecisionIds
from policyd.decider.policy_failures import PolicyFailures
from policyd.decision_log.writer import Entry
from policyd.descriptor import evaluate_request
from policyd.descriptor.identifiers import BodyAttributes
from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import KeySettings, RouteSettings
from policyd.engine.states import Credential
from policyd.errors import InvalidDescriptor, RevisionNotReached
from policyd.keys import api_key
from policyd.keys.defaults import Defaults
from policyd.keys.key_table import KeyTable
from policyd.policies import decide
from policyd.v1 import policy_pb2 as pb

if TYPE_CHECKING:
    from policyd.decider.metrics import DecisionMetrics
    from policyd.decider.traces import DecisionTraces
    from policyd.telemetry.tracing import Span

_GIVEN = Credential.GIVEN


def settings_of(keys: KeyTable, credential: Credential, key: str) -> KeySettings | None:
    """The settings of a request's key; None where the key is not in force."""
    return keys.settings(api_key.digest(key)) if credential is _GIVEN else None


class Evaluator:
    """Evaluates requests by the settings in `keys`, and waits for nothing.

    `ids` names the decisions, `metrics` times its steps, and `traces` makes spans of them.
    """

    def __init__(
        self,
        keys: KeyTable,
        defaults: Defaults,
        ids: DecisionIds,
        metrics: "DecisionMetrics | None",
        traces: "DecisionTraces | None",
    ) -> None:
        self._keys = keys
        self._defaults = defaults
        self._traces = traces
        self._read = (
            metrics.describe.timed(evaluate_request.read) if metrics else evaluate_request.read
        )
        self._decide = metrics.decide.timed(decide) if metrics else decide
        self._ids = ids
        self._failures = PolicyFailures()

    def evaluate(
        self,
        request: pb.EvaluateRequest,
        route: RouteSettings,
        trusted: frozenset[str],
        span: "Span | None",
        body: BodyAttributes | None,
    ) -> tuple[pb.EvaluateResponse, Entry]:
        """The decision, and the entry of the log. `route` has the settings of the request's route,
        `trusted` the headers that may name the end user, and `body` the attributes of its raw body,
        where that was read.

        Raises SettingsUnknown, InvalidDescriptor or RevisionNotReached.
        """
        if span is None or self._traces is None:
            return self._decided(request, route, trusted, body)
        with span.child("decide"):
            response, record = self._decided(request, route, trusted, body, span.context.trace)
        self._traces.decided(span, record, response.trace_id)
        return response, record

    def _decided(
        self,
        request: pb.EvaluateRequest,
        route: RouteSettings,
        trusted: frozenset[str],
        body: BodyAttributes | None,
        trace_id: str = "",
    ) -> tuple[pb.EvaluateResponse, Entry]:
        """The decision, and the entry of the log. `body` are the attributes of its raw body, where
        that was read; `trace_id` is logged where the request gives none."""
        revision = self._keys.revision
        if request.min_revision > revision:
            raise RevisionNotReached(f"settings are at revision {revision}: ask again")
        self._keys.check_known()
        heading = evaluate_request.read_heading(request)
        settings = settings_of(self._keys, heading.credential, heading.key)
        # A request without a valid key is denied whatever its body holds.
        accept = route.accept or (settings.accept if settings else IDENTIFIERS)
        reading = self._read(
            request,
            heading,
            reads_body=settings is not None,
            body=body,
            accept=accept,
            trusted=trusted,
        )
        if trace_id and not reading.trace_id:
            reading = reading._replace(trace_id=trace_id)
        decision_input = reading.decision_input
        decision = self._decide(decision_input, settings, self._defaults.policies, route)
        if decision.missing:
            raise InvalidDescriptor("; ".join(decision.missing))
        if decision.failures:
            self._failures.add(decision.failures)
        response = pb.EvaluateResponse()
        answer = evaluate_request.answer(decision)
        response.CopyFrom(answer)
        response.decision_id = (
            self._ids.repeatable(request, answer) if request.idempotency_key else self._ids.next()
        )
        response.revision = revision
        if settings is not None:
            response.api_key_id = settings.key_id
        # Without a key in force it is not known whether the endpoint is out of scope for it.
        if decision_input.target.path and (settings is None or decision.explanation.in_scope):
            response.upstream_path = decision_input.target.path
        if reading.trace_id:
            response.trace_id = reading.trace_id
        return response, log_entries.record(request, reading, decision, response)
