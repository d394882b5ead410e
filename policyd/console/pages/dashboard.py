"""Dashboard: the figures of a period, with their trends, over time and by key, model and user."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import charts, labels, periods
from policyd.console.view.figures import Figure, Links, Measured, change, figures
from policyd.console.view.log_query import KEY_ID
from policyd.console.view.lookups import holds_samples, key_names
from policyd.console.view.periods import Period
from policyd.console.view.render import console, is_fragment, render, shown
from policyd.store import Counts, Latencies, LogFilter, LogStatus, RefusedKeyCounts, Store

_REQUESTS = (
    charts.Series("denied", "Blocked", lambda counts: counts.denied),
    charts.Series("would-deny", "Would be blocked", lambda counts: counts.would_deny),
    charts.Series(
        "allowed", "Allowed", lambda one: max(one.requests - one.denied - one.would_deny, 0)
    ),
)
_ROWS = 8
"""Models, and users, that are listed."""
_MODELS = 1000
"""Models that are looked up, to find whether their counts cover all requests."""
_DAY = timedelta(days=1)


class _Asked(NamedTuple):
    """What a request asks for."""

    period: Period
    key_id: str
    problem: str
    now: datetime

    @property
    def links(self) -> Links:
        return Links(self.period.since, self.period.until, self.key_id)

    @property
    def key(self) -> dict[str, str]:
        return {"key": self.key_id} if self.key_id else {}

    @property
    def url(self) -> str:
        return "/?" + urlencode(self.period.query | self.key)

    @property
    def top_users_url(self) -> str:
        return "/top-users?" + urlencode(self.period.query | self.key)

    @property
    def users_url(self) -> str:
        """The page of all end users of these days."""
        first, last = (f"{at:%Y-%m-%d}" for at in (self.period.since, self.period.last))
        return "/users?" + urlencode({"period": "days", "since": first, "until": last} | self.key)

    @property
    def days(self) -> Links:
        """The whole days of UTC that the period touches: end users are counted by day."""
        first, last = (at.replace(hour=0, minute=0) for at in (self.period.since, self.period.last))
        return Links(first, last.replace(second=0) + _DAY, self.key_id)


def _asked(request: Request, store: Store) -> _Asked:
    now = store.time()
    period, problem = periods.chosen(request.query_params, now)
    key_id = request.query_params.get("key", "")
    if key_id and not KEY_ID.fullmatch(key_id):
        key_id, problem = "", problem or "There is no such API key; all keys are shown."
    return _Asked(period, key_id, problem, now)


def _show(request: Request) -> Response:
    store = console(request).store
    asked = _asked(request, store)
    values = _values(store, asked)
    values["seen"] = _fingerprint(values)
    if is_fragment(request):
        if request.query_params.get("seen") == values["seen"]:
            return Response(status_code=204)
        return render(request, "figures.html", **values)
    return render(
        request,
        "dashboard.html",
        status=400 if asked.problem else 200,
        periods=periods.DASHBOARD,
        placeholders=store.statistics.placeholders(
            asked.period.since, asked.period.last, key_id=asked.key_id
        ),
        newest=store.log.page(LogFilter(), limit=1),
        has_samples=holds_samples(store, values["log"].oldest),
        gateway=console(request).settings.console_gateway_url,
        **values,
    )


def _values(store: Store, asked: _Asked) -> dict[str, Any]:
    """What the figures show."""
    period, links = asked.period, asked.links
    hours = store.statistics.hours(period.before, period.last, asked.key_id)
    found = _measured(store, asked, hours)
    status = store.log.status()
    running = store.workers.list()
    models = store.statistics.models(period.since, period.last, key_id=asked.key_id, limit=_MODELS)
    shown_figures = list(figures(found, links))
    refused = store.refused_keys.hours(period.before, period.last)
    if not asked.key_id:
        shown_figures.append(_refused(asked, refused))
    return {
        "asked": asked,
        "period": period,
        "total": found.total,
        "figures": shown_figures,
        "refused": _within(refused, period.since, period.until, RefusedKeyCounts()),
        "requests": charts.stacked("Requests", _REQUESTS, found.buckets, period.step),
        "shares": charts.shares("Share of requests with a user", found.buckets, period.step),
        "by_key": _by_key(store, asked),
        "models": [one for one in models if one[0]][:_ROWS],
        "uncounted": _uncounted(found.total, models),
        "link": Links,
        "keys": key_names(store),
        "log": status,
        "is_cut": _is_cut(status, hours, period),
        "workers": sum(not one.is_gateway for one in running),
        "gateways": sum(one.is_gateway for one in running),
        "is_live": period.until > asked.now,
    }


def _measured(store: Store, asked: _Asked, hours: list[tuple[datetime, Counts]]) -> Measured:
    period, read = asked.period, store.statistics.latencies
    length = period.until - period.since
    # The hour that has not ended is not compared.
    end = min(period.until, asked.now.replace(minute=0, second=0, microsecond=0))
    first = store.statistics.first()
    is_counted = first is not None and first <= period.before
    by_step = read(period.since, period.last, period.step, key_id=asked.key_id)
    before = read(period.before, period.since - timedelta(seconds=1), length, key_id=asked.key_id)
    return Measured(
        period=period,
        total=_within(hours, period.since, period.until, Counts()),
        full=_within(hours, period.since, end, Counts()),
        before=_within(hours, period.before, end - length, Counts()) if is_counted else None,
        buckets=period.buckets(one for one in hours if one[0] >= period.since),
        latencies=_together(by_step.values()),
        latencies_before=_together(before.values()),
        latencies_by_step=by_step,
    )


def _within(
    hours: Iterable[tuple[datetime, Any]], since: datetime, until: datetime, whole: Any
) -> Any:
    """The sum of the hours from `since` to before `until`, added to `whole`."""
    for at, counts in hours:
        if since <= at < until:
            periods.add(whole, counts)
    return whole


def _together(found: Iterable[Latencies]) -> Latencies:
    whole = Latencies()
    for one in found:
        whole.below.update(one.below)
    return whole


def _refused(asked: _Asked, hours: list[tuple[datetime, RefusedKeyCounts]]) -> Figure:
    period = asked.period
    total = _within(hours, period.since, period.until, RefusedKeyCounts())
    end = min(period.until, asked.now.replace(minute=0, second=0, microsecond=0))
    length = period.until - period.since
    full = _within(hours, period.since, end, RefusedKeyCounts())
    before = _within(hours, period.before, end - length, RefusedKeyCounts())
    buckets = period.refused_keys(one for one in hours if one[0] >= period.since)
    return Figure(
        "refused",
        "Refused keys",
        labels.number(total.total),
        "/refused?" + urlencode(period.query),
        change(full.total, before.total),
        charts.spark([counts.total for _, counts in buckets]),
        "counted apart from the log",
    )


def _by_key(store: Store, asked: _Asked) -> list[tuple[str, Counts]]:
    found = store.statistics.keys(asked.period.since, asked.period.last)
    return [one for one in found if asked.key_id in ("", one[0])]


def _uncounted(total: Counts, models: list[tuple[str, Counts]]) -> int:
    """How many requests are not counted by model: older versions of policyd did not do so."""
    if len(models) == _MODELS:
        return 0
    return max(total.requests - sum(counts.requests for _, counts in models), 0)


def _is_cut(status: LogStatus, hours: list[tuple[datetime, Counts]], period: Period) -> bool:
    """Whether counted decisions have been retired since, so that links cannot list them."""
    oldest = status.oldest
    return oldest is not None and any(
        period.since <= at < oldest - timedelta(hours=1) for at, _ in hours
    )


def _fingerprint(values: dict[str, Any]) -> str:
    """A digest that changes when anything shown does."""
    names = ("workers", "gateways", "figures", "requests", "by_key", "models")
    shown_values = repr([values[name] for name in names])
    return sha256(shown_values.encode("utf-8", "replace")).hexdigest()[:16]


def _top_users(request: Request) -> Response:
    """The end users with the most requests. There may be many to count, so the page asks for them
    separately, and less often."""
    store = console(request).store
    asked = _asked(request, store)
    days = asked.days
    last = days.until - timedelta(seconds=1)
    users = store.statistics.users(days.since, last, key_id=asked.key_id, limit=_ROWS)
    return render(request, "top_users.html", asked=asked, days=days, users=users)


ROUTES = [Route("/", shown(_show)), Route("/top-users", shown(_top_users))]
