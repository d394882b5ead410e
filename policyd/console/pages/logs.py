"""Logs: the decisions, newest first, filtered, live, and as files."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from policyd.console.view import columns, labels, log_query
from policyd.console.view.actor import note
from policyd.console.view.forms import text
from policyd.console.view.log_query import LogQuery
from policyd.console.view.lookups import key_names
from policyd.console.view.render import Console, console, posted, refuse, render, shown
from policyd.decision_log.export import csv_rows, json_line
from policyd.decision_log.record import Record, moment
from policyd.keys.audit import Action
from policyd.store import LogFilter, Page, Store

PAGE = 50
_EXPORT_PAGE = 1000
_LATELY = timedelta(days=7)
_SUGGESTED = 50


def _page(request: Request) -> Response:
    store = console(request).store
    query = log_query.read(request.query_params, store.time())
    names = key_names(store)
    records, reached = _find(store, query)
    wanted = query.wanted.any_id
    if wanted and len(records) == 1 and not query.filters and not query.after:
        return RedirectResponse(f"/logs/{records[0].id}", 303)
    after = records[PAGE - 1].id if len(records) > PAGE else reached
    return render(
        request,
        "logs.html",
        refused=store.refused_keys.sample(wanted) if wanted and not records else None,
        status=400 if query.problems else 200,
        query=query,
        records=records[:PAGE],
        older=query.url(after=after) if after else "",
        reached=moment(reached) if reached and len(records) <= PAGE else None,
        keys=names,
        seen=_fingerprint(records[:PAGE]),
        is_log_empty=not records and not query.given and not query.after and not reached,
        models=[] if query.problems else _models(store, query),
        form=log_query,
        chips=log_query.chips(query, names),
        columns=columns.chosen(request.cookies),
        all_columns=columns,
        policies=labels.POLICIES,
        flags=labels.FLAGS,
    )


def _rows(request: Request) -> Response:
    """The rows of the first page, for htmx; 204 where the page shows these rows already."""
    store = console(request).store
    query = log_query.read(request.query_params, store.time())
    records = _find(store, query)[0][:PAGE] if query.is_live else []
    seen = _fingerprint(records)
    if not query.is_live or request.query_params.get("seen") == seen:
        return Response(status_code=204)
    if "first" in request.query_params:  # The log was empty: the page has no table yet.
        return Response(headers={"HX-Refresh": "true"})
    return render(
        request,
        "log_rows.html",
        query=query,
        records=records,
        keys=key_names(store),
        seen=seen,
        columns=columns.chosen(request.cookies),
        all_columns=columns,
    )


def _find(store: Store, query: LogQuery) -> Page:
    if query.problems:
        return Page([])
    return store.log.search(query.wanted, after=query.after, limit=PAGE + 1)


def _models(store: Store, query: LogQuery) -> list[str]:
    """The models that the filter suggests: the commonest lately."""
    found = store.statistics.models(query.now - _LATELY, query.now, limit=_SUGGESTED)
    return [model for model, _ in found if model]


def _choose(request: Request, form: FormData) -> Response:
    """Keep the choice of columns in a cookie, and show the log as it was."""
    names = columns.known(str(name) for name in form.getlist("column"))
    query = log_query.read(dict(parse_qsl(text(form, "query").lstrip("?"))), datetime.now(UTC))
    answer = RedirectResponse(query.url(), 303)
    if names and "usual" not in form:
        answer.set_cookie(
            columns.COOKIE,
            ".".join(names),
            columns.AGE,
            path="/logs",
            httponly=True,
            samesite="lax",
        )
    else:
        answer.delete_cookie(columns.COOKIE, path="/logs")
    return answer


def _fingerprint(records: list[Record]) -> str:
    """A digest that changes when a row is added, or a row gets its outcome."""
    shown = ",".join(f"{one.id}{one.outcome is not None:d}" for one in records)
    return sha256(shown.encode()).hexdigest()[:16]


async def _export(request: Request) -> Response:
    form = request.path_params["form"]
    here = console(request)
    query = log_query.read(request.query_params, await here.pages.run(here.store.time))
    if query.problems or form not in ("csv", "jsonl"):
        problem = next(iter(query.problems.values()), "The log is exported as csv or jsonl.")
        return refuse(request, 400, problem)
    store = here.store
    # The first page is read before the answer begins, so that an error can still become a 503.
    first = await here.pages.run(store.log.search, query.wanted, limit=_EXPORT_PAGE)
    what = {"format": form, "filter": urlencode(query.given, errors="replace")}
    await here.pages.run(note, request, Action.LOG_EXPORT, what)
    records = _every(store, query.wanted, first)
    lines = csv_rows(records) if form == "csv" else map(json_line, records)
    name = f"policyd-log-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{form}"
    return StreamingResponse(
        _in_threads(here, (line.encode("utf-8", "replace") for line in _together(lines))),
        media_type="text/csv; charset=utf-8" if form == "csv" else "application/jsonl",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def _in_threads(here: Console, portions: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The portions, each made in a thread, because the store blocks."""
    while (portion := await here.pages.run(next, portions, None)) is not None:
        yield portion


def _every(store: Store, wanted: LogFilter, page: Page) -> Iterator[Record]:
    while page.records or page.reached:
        yield from page.records
        after = page.reached or page.records[-1].id
        page = store.log.search(wanted, after=after, limit=_EXPORT_PAGE)


def _together(lines: Iterator[str]) -> Iterator[str]:
    """The lines, joined into portions, as each portion crosses from a thread to the event loop."""
    waiting: list[str] = []
    for line in lines:
        waiting.append(line)
        if len(waiting) == _EXPORT_PAGE:
            yield "".join(waiting)
            waiting.clear()
    yield "".join(waiting)


ROUTES = [
    Route("/logs", shown(_page)),
    Route("/logs/rows", shown(_rows)),
    Route("/logs/columns", posted(_choose), methods=["POST"]),
    Route("/logs/export.{form}", _export),
]
