"""Refused keys: requests without a valid API key, by time and source, with examples."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import charts, periods
from policyd.console.view.render import console, render, shown
from policyd.decision_log.refused_tally import MAX_SOURCES

_REASONS = (
    charts.Series("denied", "Not valid", lambda counts: counts.unknown),
    charts.Series("would-deny", "No key", lambda counts: counts.missing),
    charts.Series("allowed", "Two keys", lambda counts: counts.conflicting),
)
_SOURCES = 50
_SAMPLES = 50


def _show(request: Request) -> Response:
    store = console(request).store
    refused = store.refused_keys
    period, problem = periods.chosen(request.query_params, store.time())
    hours = refused.hours(period.since, period.last)
    buckets = period.refused_keys(hours)
    return render(
        request,
        "refused_keys.html",
        status=400 if problem else 200,
        problem=problem,
        period=period,
        periods=periods.DASHBOARD,
        total=periods.total_refused_keys(hours),
        chart=charts.stacked("Refused keys", _REASONS, buckets, period.step),
        sources=refused.sources(period.since, period.last, limit=_SOURCES),
        most_sources=MAX_SOURCES,
        samples=refused.samples(period.since, limit=_SAMPLES),
    )


ROUTES = [Route("/refused", shown(_show))]
