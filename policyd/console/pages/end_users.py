"""End users: requests, flags, errors, latency, tokens and cost of each."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import charts, periods, sorting
from policyd.console.view.log_query import KEY_ID
from policyd.console.view.lookups import holds_samples, key_names
from policyd.console.view.periods import Period
from policyd.console.view.render import console, render, shown
from policyd.console.view.sorting import Sorting
from policyd.decision_log.record import MAX_TEXT
from policyd.descriptor.placeholders import is_placeholder
from policyd.store import Counts, Store

PAGE = 50
_ODD = 4
"""Odd end users of each kind that are named."""
_COLUMNS = {
    "user": "End user",
    "requests": "Requests",
    "flagged": "Flagged",
    "errors": "Errors",
    "latency": "Latency",
    "tokens": "Tokens",
    "cost": "Cost",
}
_ATTRIBUTION = (
    charts.Series("attributed", "With a user", lambda counts: counts.attributed),
    charts.Series("unattributed", "Without a user", lambda counts: counts.unattributed),
)


def _read(asked: Mapping[str, str], period: Period) -> tuple[Sorting, str]:
    """Which rows a URL asks for, in which order, and what is wrong with it, or ""."""
    key_id, problem = asked.get("key", ""), ""
    if key_id and not KEY_ID.fullmatch(key_id):
        key_id, problem = "", "There is no such API key; all keys are shown."
    kept = {"period": period.name, "key": key_id, "find": asked.get("find", "").strip()[:MAX_TEXT]}
    if period.name == "days":
        kept |= {name: asked.get(name, "") for name in ("since", "until")}
    return sorting.read("/users", asked, ("requests", *_COLUMNS), ("user",), kept), problem


def _show(request: Request) -> Response:
    store = console(request).store
    statistics = store.statistics
    asked = request.query_params
    period, wrong_period = periods.whole_days(asked, store.time())
    table, problem = _read(asked, period)
    key_id, text = table.kept["key"], table.kept["find"]
    within = (period.since, period.last)
    users = statistics.users(
        *within,
        key_id=key_id,
        text=text,
        sort=table.sort,
        descending=table.is_descending,
        offset=table.offset,
        limit=PAGE + 1,
    )
    hours = statistics.hours(*within, key_id)
    emails, addresses = statistics.emails(*within, key_id=key_id, limit=_ODD)
    previous, following = table.page(PAGE, has_more=len(users) > PAGE)
    return render(
        request,
        "end_users.html",
        status=400 if wrong_period or problem else 200,
        problem=wrong_period or problem,
        period=period,
        periods=periods.USERS,
        table=table,
        key_id=key_id,
        find=text,
        columns=_COLUMNS,
        rows=_rows(store, users[:PAGE], key_id),
        next=following,
        previous=previous,
        total=periods.total(hours),
        placeholders=statistics.placeholders(*within, key_id=key_id, limit=_ODD),
        emails=emails,
        addresses=addresses,
        log_url=partial(_log_url, period, key_id),
        chart=charts.stacked("Requests", _ATTRIBUTION, period.buckets(hours), period.step),
        keys=key_names(store),
        has_samples=holds_samples(store, store.log.status().oldest),
    )


class _Row(NamedTuple):
    """An end user."""

    name: str
    counts: Counts
    models: Sequence[str]
    """The models of its newest requests, commonest first. So are `keys`."""
    keys: Sequence[str]
    kind: str
    """What is odd about the name; "" where nothing is."""


def _rows(store: Store, users: Sequence[tuple[str, Counts]], key_id: str) -> list[_Row]:
    usage = store.log.usage((name for name, _ in users), key_id=key_id)
    nothing: tuple[list[str], list[str]] = ([], [])
    return [_Row(name, counts, *usage.get(name, nothing), _kind(name)) for name, counts in users]


def _kind(name: str) -> str:
    if is_placeholder(name):
        return "Placeholder"
    return "E-mail" if _is_email(name) else ""


def _is_email(name: str) -> bool:
    """Whether a name looks like an e-mail address, by the rule of the statistics."""
    local, _, host = name.partition("@")
    return bool(local) and "@" not in host and "." in host[1:-2]


def _log_url(period: Period, key_id: str, user: str, key: str = "", **more: str) -> str:
    """The page of the log with an end user's requests in a period, of one key or of all. "" stands
    for requests whose end user is not known."""
    ends = {"since": f"{period.since:%Y-%m-%dT%H:%M}", "until": f"{period.until:%Y-%m-%dT%H:%M}"}
    named = {"user": user} if user else {"nouser": "1"}
    given = named | {"key": key or key_id} | more | ends
    return "/logs?" + urlencode({name: one for name, one in given.items() if one}, errors="replace")


ROUTES = [Route("/users", shown(_show))]
