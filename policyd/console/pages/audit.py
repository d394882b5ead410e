"""Audit: what administrators changed, and when they signed in and exported the log."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import labels
from policyd.console.view.changes import changes
from policyd.console.view.log_query import KEY_ID, moment
from policyd.console.view.lookups import key_names
from policyd.console.view.render import console, render, shown
from policyd.keys.audit import AuditRecord

PAGE = 50
_FILTERS = ("action", "key", "by", "since", "until")
_MAX_ACTOR = 200


@dataclass(frozen=True, slots=True)
class _Query:
    """The filters of a URL."""

    given: Mapping[str, str]
    before_id: int
    problems: Mapping[str, str]

    def url(self, path: str, **more: str) -> str:
        return f"{path}?" + urlencode({**self.given, **more}, errors="replace")

    def wanted(self) -> dict[str, Any]:
        """What the store is asked for, where there are no problems."""
        given = self.given
        ends = {name: moment(given[name]) for name in ("since", "until") if name in given}
        texts = {"action": given.get("action", ""), "by": given.get("by", "")}
        return {**texts, **ends, "key_id": given.get("key", ""), "before_id": self.before_id}


def _read(asked: Mapping[str, str]) -> _Query:
    given = {name: value for name in _FILTERS if (value := asked.get(name, "").strip())}
    problems = {name: told for name, value in given.items() if (told := _problem(name, value))}
    before = asked.get("before", "")
    is_number = before.isascii() and before.isdecimal() and len(before) < 19
    return _Query(given, int(before) if is_number else 0, problems)


def _problem(name: str, value: str) -> str:
    if name == "key" and not KEY_ID.fullmatch(value):
        return "Choose one of the API keys."
    if name == "action" and value not in labels.ACTIONS:
        return "Choose one of the actions."
    if name == "by" and len(value) > _MAX_ACTOR:
        return f"An actor has at most {_MAX_ACTOR} characters."
    if name in ("since", "until"):
        try:
            moment(value)
        except ValueError as error:
            return str(error)
    return ""


def _show(request: Request) -> Response:
    query = _read(request.query_params)
    store = console(request).store
    found = [] if query.problems else store.audit.list(**query.wanted(), limit=PAGE + 1)
    return render(
        request,
        "audit.html",
        status=400 if query.problems else 200,
        query=query,
        keys=key_names(store),
        **_page(found),
    )


def _history(request: Request) -> Response:
    store = console(request).store
    key = store.keys.get(request.path_params["key_id"])
    query = _read({"before": request.query_params.get("before", "")})
    found = store.audit.list(key_id=key.id, before_id=query.before_id, limit=PAGE + 1)
    return render(
        request, "key_history.html", key=key, query=query, now=store.time(), keys={}, **_page(found)
    )


def _page(found: list[AuditRecord]) -> dict[str, Any]:
    shown_ones = found[:PAGE]
    return {
        "records": [(one, changes(one)) for one in shown_ones],
        "older": shown_ones[-1].id if len(found) > PAGE else 0,
    }


ROUTES = [
    Route("/audit", shown(_show)),
    Route("/keys/{key_id}/history", shown(_history)),
]
