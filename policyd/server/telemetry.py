"""What operators watch a worker by, as its settings say: metrics, the access log, and traces."""

import asyncio
from collections.abc import Coroutine, Sized
from typing import TYPE_CHECKING, Any

from policyd.command.worker_clock import WorkerClock
from policyd.decider.access import DecisionAccess
from policyd.decider.traces import DecisionTraces
from policyd.decision_log.writer import DecisionLog
from policyd.descriptor.body_memory import Bodies
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.services.errors import Note, unnoted
from policyd.settings import ServerSettings
from policyd.telemetry.access import AccessLog
from policyd.telemetry.tracing import Tracer, start_tracing

if TYPE_CHECKING:
    from policyd.decider.metrics import DecisionMetrics
    from policyd.server.http_check import HttpServer
    from policyd.server.worker_metrics import WorkerMetrics
    from policyd.store.destination import NoteShipped


class Telemetry:
    """Metrics, access lines and spans of one worker; each is None where no setting asks for it."""

    def __init__(
        self, settings: ServerSettings, keys: StoredKeyTable, clock: WorkerClock, bodies: Bodies
    ) -> None:
        self._settings = settings
        self._metrics = _measured(keys, clock, bodies) if settings.metrics is not None else None
        self._tracer: Tracer | None = None
        self.access = DecisionAccess(AccessLog()) if settings.access_log else None

    @property
    def decisions(self) -> "DecisionMetrics | None":
        """What counts decisions."""
        return self._metrics.decisions if self._metrics else None

    @property
    def note(self) -> Note:
        """Counts each error that a caller gets in place of a decision."""
        return self._metrics.decisions.failed if self._metrics else unnoted

    def count_shipped(self) -> "NoteShipped | None":
        """What counts the entries of gateways that are shipped to the database, from now on."""
        return self._metrics.count_shipped() if self._metrics else None

    def traces(self) -> DecisionTraces | None:
        """What makes spans, from now on. Raises SettingsError."""
        settings = self._settings
        given = (settings.traces, settings.trace_sample, settings.trace_users)
        self._tracer = start_tracing("policyd", *given)
        return DecisionTraces(self._tracer) if self._tracer else None

    def look_at(self, http: "HttpServer") -> None:
        """Include the HTTP check in the metrics."""
        if self._metrics is not None:
            self._metrics.http = http

    def count(self, followers: Sized) -> None:
        """Include in the metrics how many gateways follow the settings."""
        if self._metrics is not None:
            self._metrics.followers = followers

    def work(self, log: DecisionLog) -> list[Coroutine[Any, Any, None]]:
        """What is to run until the worker stops. Includes `log` in the metrics."""
        if self._metrics is None:
            return []
        self._metrics.log = log
        return [self._metrics.keep()]

    async def end(self) -> None:
        """Hand over what was counted, write the last lines, and send the last spans."""
        if self._metrics is not None:
            self._metrics.end()
        if self.access is not None:
            self.access.end()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)


def _measured(keys: StoredKeyTable, clock: WorkerClock, bodies: Bodies) -> "WorkerMetrics":
    # Imported late, so that a policyd without --metrics starts sooner.
    from policyd.server.worker_metrics import WorkerMetrics

    return WorkerMetrics(keys, clock, bodies)
