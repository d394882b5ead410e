"""End users: requests, flags, errors, latency, tokens and cost of each."""

from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import charts, periods
from policyd.console.view.log_query import KEY_ID
from policyd.console.view.lookups import holds_samples, key_names
from policyd.console.view.periods import Period
from policyd.console.view.render import console, render, shown
from policyd.descriptor.placeholders import is_placeholder

PAGE = 50
_COLUMNS = {
    "user": "End user",
    "requests": "Requests",
    "flagged": "Flagged",
    "errors": "Errors",
    "latency": "Latency",
    "tokens": "Tokens",
    "cost": "Cost",
}
_MAX_OFFSET = 1_000_000
_ATTRIBUTION = (
    charts.Series("attributed", "With a user", lambda counts: counts.attributed),
    charts.Series("unattributed", "Without a user", lambda counts: counts.unattributed),
)


class Table:
    """Which rows of the table of users a request asks for, and in which order."""

    def __init__(self, request: Request, period: Period) -> None:
        asked = request.query_params
        self.key_id = asked.get("key", "")
        self.problem = ""
        if self.key_id and not KEY_ID.fullmatch(self.key_id):
            self.key_id, self.problem = "", "There is no such API key; all keys are shown."
        self.sort = asked["sort"] if asked.get("sort") in _COLUMNS else "requests"
        # By default names go from A to Z, and numbers from the largest down.
        usual = "up" if self.sort == "user" else "down"
        self.order = asked["order"] if asked.get("order") in ("up", "down") else usual
        offset = asked.get("offset", "0")
        is_number = offset.isascii() and offset.isdecimal() and len(offset) < 8
        self.offset = min(int(offset), _MAX_OFFSET) if is_number else 0
        self._period = {"period": period.name}
        if period.name == "days":
            self._period |= {name: asked.get(name, "") for name in ("since", "until")}

    def url(self, **changes: str) -> str:
        """The URL of this table with some changes, on its first page unless an offset is given."""
        parameters = {**self._period, "key": self.key_id, "sort": self.sort, "order": self.order}
        given = {name: value for name, value in (parameters | changes).items() if value}
        return "/users?" + urlencode(given, errors="replace")

    def sort_url(self, column: str) -> str:
        """The URL of this table sorted by a column; in reverse where it is sorted by it already."""
        turned = "up" if self.order == "down" else "down"
        order = turned if column == self.sort else "up" if column == "user" else "down"
        return self.url(sort=column, order=order)

    def direction(self, column: str) -> str:
        """The value of aria-sort for a column."""
        if column != self.sort:
            return "none"
        return "ascending" if self.order == "up" else "descending"


def _show(request: Request) -> Response:
    store = console(request).store
    statistics = store.statistics
    period, problem = periods.whole_days(request.query_params, store.time())
    table = Table(request, period)
    last = period.last
    users = statistics.users(
        period.since,
        last,
        key_id=table.key_id,
        sort=table.sort,
        descending=table.order == "down",
        offset=table.offset,
        limit=PAGE + 1,
    )
    hours = statistics.hours(period.since, last, table.key_id)
    total = periods.total(hours)
    placeholders = statistics.placeholders(period.since, last, key_id=table.key_id)
    return render(
        request,
        "end_users.html",
        status=400 if problem or table.problem else 200,
        problem=problem or table.problem,
        period=period,
        periods=periods.USERS,
        last=last,
        table=table,
        columns=_COLUMNS,
        users=users[:PAGE],
        usage=store.log.usage((name for name, _ in users[:PAGE]), key_id=table.key_id),
        next=table.url(offset=str(table.offset + PAGE)) if len(users) > PAGE else "",
        previous=table.url(offset=str(max(table.offset - PAGE, 0))) if table.offset else "",
        total=total,
        placeholders=placeholders,
        is_placeholder=is_placeholder,
        chart=charts.stacked("Requests", _ATTRIBUTION, period.buckets(hours), period.step),
        keys=key_names(store),
        has_samples=holds_samples(store, store.log.status().oldest),
    )


ROUTES = [Route("/users", shown(_show))]
