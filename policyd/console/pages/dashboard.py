"""Dashboard: requests, blocks and the attributed share, over time and by key."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import charts, periods
from policyd.console.view.lookups import holds_samples, key_names
from policyd.console.view.render import console, render, shown
from policyd.store import LogFilter

_REQUESTS = (
    charts.Series("denied", "Blocked", lambda counts: counts.denied),
    charts.Series("would-deny", "Would be blocked", lambda counts: counts.would_deny),
    charts.Series(
        "allowed", "Allowed", lambda one: max(one.requests - one.denied - one.would_deny, 0)
    ),
)


def _show(request: Request) -> Response:
    here = console(request)
    period = periods.last_hours(request.query_params.get("period", ""), here.store.time())
    names = key_names(here.store)
    keys = here.store.statistics.keys(period.since, period.last)
    hours = here.store.statistics.hours(period.since, period.last)
    buckets = period.buckets(hours)
    status = here.store.log.status()
    newest = here.store.log.page(LogFilter(), limit=1)
    total = periods.total(hours)
    refused = periods.total_refused_keys(here.store.refused_keys.hours(period.since, period.last))
    return render(
        request,
        "dashboard.html",
        period=period,
        periods=periods.DASHBOARD,
        total=total,
        refused=refused,
        placeholders=here.store.statistics.placeholders(period.since, period.last),
        requests=charts.stacked("Requests", _REQUESTS, buckets, period.step),
        shares=charts.shares("Share of requests with a user", buckets, period.step),
        by_key=keys,
        keys=names,
        newest=newest,
        log=status,
        has_samples=holds_samples(here.store, status.oldest),
        workers=here.store.workers.list(),
        gateway=here.settings.console_gateway_url,
    )


ROUTES = [Route("/", shown(_show))]
