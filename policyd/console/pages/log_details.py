"""Log Details: one decision with all that the log has about it, and the others of its trace."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import log_query
from policyd.console.view.lookups import key_names
from policyd.console.view.render import console, render, shown
from policyd.decision_log import results
from policyd.store import LogFilter

_TRACE_ROWS = 20


def _show(request: Request) -> Response:
    store = console(request).store
    record = store.log.get(request.path_params["decision_id"])
    query = log_query.read(request.query_params, store.time())
    trace = []
    if record.trace_id:
        wanted = LogFilter(trace_id=record.trace_id)
        found = store.log.page(wanted, limit=_TRACE_ROWS + 1)
        trace = [one for one in found if one.id != record.id][:_TRACE_ROWS]
    newer, older = store.log.neighbours(query.wanted, record.id)
    return render(
        request,
        "log_details.html",
        record=record,
        found=results.of(record),
        trace=trace,
        keys=key_names(store),
        query=query,
        newer=query.url(f"/logs/{newer}") if newer else "",
        older=query.url(f"/logs/{older}") if older else "",
    )


ROUTES = [Route("/logs/{decision_id}", shown(_show))]
