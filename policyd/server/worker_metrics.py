"""The metrics of one worker: its counts, and the gauges of its state.

Only a policyd with --metrics loads it, and prometheus-client.
"""

from collections.abc import Sized
from typing import TYPE_CHECKING

from policyd.command.worker_clock import WorkerClock
from policyd.decider.metrics import DecisionMetrics
from policyd.decision_log.writer import DecisionLog
from policyd.descriptor.body_memory import Bodies
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.telemetry import catalogue
from policyd.telemetry.metrics import Watch

if TYPE_CHECKING:
    from policyd.server.http_check import HttpServer
    from policyd.store.destination import NoteShipped


class WorkerMetrics(Watch):
    """Counts what a worker does, and looks at `keys`, `clock`, `bodies`, `log` and `http`."""

    http: "HttpServer | None" = None
    log: DecisionLog | None = None
    followers: Sized = ()
    """The gateways that follow the settings."""

    def __init__(self, keys: StoredKeyTable, clock: WorkerClock, bodies: Bodies) -> None:
        self._keys = keys
        self._clock = clock
        self._bodies = bodies
        super().__init__()
        metrics = self._metrics
        self.decisions = DecisionMetrics(metrics)
        self._revision = metrics.gauge(catalogue.REVISION)
        self._staleness = metrics.gauge(catalogue.STALENESS)
        self._known = metrics.gauge(catalogue.KEYS)
        self._database_up = metrics.gauge(catalogue.DATABASE_UP)
        self._clock_offset = metrics.gauge(catalogue.CLOCK_OFFSET)
        self._connections = metrics.gauge(catalogue.CONNECTIONS, "http")
        self._followers = metrics.gauge(catalogue.FOLLOWERS)
        self._body_bytes = metrics.gauge(catalogue.BODY_BYTES)
        self._lost = metrics.count(catalogue.LOST)
        self._lost_before = 0

    def count_shipped(self) -> "NoteShipped":
        """What counts the entries of gateways that decide by themselves."""
        # Imported late: prices take half a second, and most workers need none.
        from policyd.server.shipped_metrics import ShippedMetrics

        return ShippedMetrics(self._metrics).shipped

    def _look(self) -> None:
        keys = self._keys
        self._revision.set(keys.revision)
        self._staleness.set(keys.staleness())
        self._known.set(len(keys))
        self._database_up.set(keys.is_answered)
        self._clock_offset.set(self._clock.ahead)
        self._connections.set(self.http.connections if self.http else 0)
        self._followers.set(len(self.followers))
        self._body_bytes.set(self._bodies.held)
        if self.log is not None:
            self._lost.pending += self.log.lost - self._lost_before
            self._lost_before = self.log.lost
