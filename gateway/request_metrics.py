"""What the gateway counts and times, where it serves metrics.

Only a gateway with --metrics loads it, and prometheus-client.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from policyd.telemetry import bounds, catalogue
from policyd.telemetry.bounds import OTHER, Names
from policyd.telemetry.metrics import Metrics, Watch

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.exchange import Exchange
    from policyd.client.local import LocalPolicyClient
    from policyd.client.request_outcome import RequestOutcome

_NS = 1e-9


class RequestMetrics(Watch):
    """Counts requests and times their steps, and looks at the `gateway` and its connections."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self.connections: Callable[[], int] = int
        """How many connections of clients are open; the server sets this."""
        super().__init__()
        metrics = self._metrics
        self._requests = metrics.counts(catalogue.GATEWAY_REQUESTS)
        self._steps = {
            step: metrics.timing(catalogue.GATEWAY_STEP_SECONDS, step)
            for step in ("describe", "ask", "upstream", "first_byte", "total")
        }
        self._models = Names(bounds.MODELS)
        self._tokens = metrics.counts(catalogue.GATEWAY_TOKENS)
        self._undecided = {
            outcome: metrics.count(catalogue.UNDECIDED, outcome)
            for outcome in ("forwarded", "refused")
        }
        self._lost = metrics.count(catalogue.OUTCOMES_LOST)
        self._lost_before = 0
        self._open = metrics.gauge(catalogue.GATEWAY_CONNECTIONS)
        self._streams = metrics.gauge(catalogue.STREAMS)
        self._body_bytes = metrics.gauge(catalogue.GATEWAY_BODY_BYTES)
        self._breaker = metrics.gauge(catalogue.BREAKER_OPEN)
        self._local: LocalMetrics | None = None

    def served(self, exchange: "Exchange", now: int) -> None:
        """Count a request that has ended. `now` and the exchange's moments are nanoseconds of
        time.perf_counter_ns()."""
        operation = exchange.operation or OTHER
        status = bounds.status(exchange.status)
        self._requests.of(operation, status, exchange.by or "client").pending += 1
        steps, began = self._steps, exchange.began
        steps["total"].add((now - began) * _NS)
        if exchange.asked:
            steps["describe"].add((exchange.asked - began) * _NS)
        if exchange.decided:
            steps["ask"].add((exchange.decided - exchange.asked) * _NS)
        if exchange.answered:
            steps["upstream"].add((exchange.answered - exchange.decided) * _NS)
            steps["first_byte"].add((exchange.answered - began) * _NS)

    def undecided(self, outcome: str) -> None:
        """Count a request without a decision, which was `forwarded` or `refused`."""
        self._undecided[outcome].pending += 1

    def used(self, outcome: "RequestOutcome") -> None:
        """Count the tokens of an answer."""
        model = self._models.bounded(outcome.model)
        for kind in catalogue.TOKEN_KINDS:
            if amount := getattr(outcome, f"{kind}_tokens"):
                self._tokens.of(model, kind).pending += amount

    def _look(self) -> None:
        gateway = self._gateway
        self._lost.pending += gateway.outcomes_lost - self._lost_before
        self._lost_before = gateway.outcomes_lost
        self._open.set(self.connections())
        self._streams.set(gateway.streams)
        self._body_bytes.set(gateway.held)
        self._breaker.set(gateway.is_breaker_open)
        if gateway.local is not None:
            self._local = self._local or LocalMetrics(self._metrics, gateway.local)
            self._local.look()


class LocalMetrics:
    """Looks at a `client` that decides in the gateway."""

    def __init__(self, metrics: Metrics, client: "LocalPolicyClient") -> None:
        self._client = client
        self._revision = metrics.gauge(catalogue.GATEWAY_REVISION)
        self._staleness = metrics.gauge(catalogue.GATEWAY_STALENESS)
        self._followed = metrics.gauge(catalogue.GATEWAY_FOLLOWED)
        self._spool = metrics.gauge(catalogue.GATEWAY_SPOOL_BYTES)
        self._carried = metrics.count(catalogue.GATEWAY_CARRIED)
        self._lost = metrics.count(catalogue.GATEWAY_LOST)
        self._before = (0, 0)

    def look(self) -> None:
        """Take the present values."""
        client = self._client
        self._revision.set(client.keys.revision)
        self._staleness.set(client.keys.staleness())
        self._followed.set(client.follower.is_followed)
        self._spool.set(client.carrier.waiting)
        carried, lost = self._before
        now = self._before = (client.destination.carried, client.lost)
        self._carried.pending += now[0] - carried
        self._lost.pending += now[1] - lost
