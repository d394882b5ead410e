"""What logs and traces the requests of a gateway, where its operator asks for it.

Both are imported late, so that a gateway without them starts sooner.
"""

from typing import TYPE_CHECKING

from gateway.settings import Settings
from policyd.telemetry.tracing import start_tracing

if TYPE_CHECKING:
    from gateway.request_access import RequestAccess
    from gateway.request_traces import RequestTraces


def access_of(settings: Settings) -> "RequestAccess | None":
    """The access log, where the settings ask for it."""
    if not settings.access_log:
        return None
    from gateway.request_access import RequestAccess

    return RequestAccess()


def traces_of(settings: Settings) -> "RequestTraces | None":
    """The traces, where the settings name a collector. Raises SettingsError."""
    tracer = start_tracing("policyd-gateway", settings.traces, settings.trace_sample)
    if tracer is None:
        return None
    from gateway.request_traces import RequestTraces

    return RequestTraces(tracer, settings.upstream, is_local=settings.is_local)
