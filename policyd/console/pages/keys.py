"""API Keys: list, create and revoke them."""

from collections.abc import Mapping
from typing import NamedTuple

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from policyd.console.view.actor import actor
from policyd.console.view.forms import read_etag, text
from policyd.console.view.panels import Panel, default_mode, is_set
from policyd.console.view.render import console, posted, render, shown
from policyd.console.view.snippets import snippets
from policyd.console.view.text import sentence
from policyd.console.view.typed_settings import TypedPolicy
from policyd.engine.settings import ApiKey, Setting, Settings, setting_of
from policyd.engine.states import Override
from policyd.errors import EtagMismatch, InvalidArgument, NameTaken
from policyd.policies import TABLE
from policyd.store import MAX_NAME

_PAGE = 100


class _Row(NamedTuple):
    """A key with what it sets."""

    key: ApiKey
    original: Setting
    others: Settings
    """Those of all other policies that it sets."""


def _row(key: ApiKey) -> _Row:
    original = TABLE.original.name
    others = [(name, one) for name, one in key.policies if name != original and is_set(one)]
    return _Row(key, setting_of(key.policies, original), tuple(others))


def _list(request: Request) -> Response:
    here = console(request)
    show_revoked = "revoked" in request.query_params
    after = request.query_params.get("after", "")
    found = here.store.keys.list(after=after, limit=_PAGE + 1, show_revoked=show_revoked)
    return render(
        request,
        "keys.html",
        rows=[_row(key) for key in found[:_PAGE]],
        after=found[_PAGE - 1].id if len(found) > _PAGE else "",
        is_first=not after,
        show_revoked=show_revoked,
        original=TABLE.original,
        any=Override.ANY,
        default=default_mode(TABLE.original, here.defaults),
        just_revoked=_revoked_name(request, request.query_params.get("done", "")),
    )


def _revoked_name(request: Request, key_id: str) -> str:
    # A link may name any key: only one that is revoked is reported as revoked.
    key = console(request).store.keys.get(key_id) if key_id else None
    return key.name if key and key.revoked_at else ""


def _new(request: Request) -> Response:
    if form := console(request).kept.of(request):
        typed = TypedPolicy(TABLE.original).typed_over(form)
        return _new_form(request, text(form, "name"), typed, returned=True)
    return _new_form(request, "", TypedPolicy(TABLE.original))


def _new_form(
    request: Request,
    name: str,
    typed: TypedPolicy,
    problems: Mapping[str, str] | None = None,
    *,
    returned: bool = False,
) -> Response:
    default = default_mode(TABLE.original, console(request).defaults)
    return render(
        request,
        "new_key.html",
        status=422 if problems else 200,
        name=name,
        returned=returned,
        panel=Panel(TABLE.original, typed, Setting(), default, problems or {}),
        problems=problems or {},
        max_name=MAX_NAME,
    )


def _create(request: Request, form: FormData) -> Response:
    here = console(request)
    name = text(form, "name")
    typed = TypedPolicy(TABLE.original).typed_over(form)
    if problems := typed.problems():
        return _new_form(request, name, typed, problems)
    try:
        key, secret = here.store.keys.create(
            name, TABLE.with_original(typed.setting().mode), by=actor(request)
        )
    except (InvalidArgument, NameTaken) as error:
        return _new_form(request, name, typed, {"name": sentence(str(error))})
    url = here.settings.console_gateway_url.rstrip("/")
    return render(
        request,
        "created_key.html",
        status=201,
        key=key,
        secret=secret,
        url=url,
        snippets=snippets(url, secret),
    )


def _ask_to_revoke(request: Request) -> Response:
    return _revoke_form(request, console(request).store.keys.get(request.path_params["key_id"]))


def _revoke_form(request: Request, key: ApiKey, problem: str = "") -> Response:
    return render(
        request, "revoke_key.html", status=409 if problem else 200, key=key, problem=problem
    )


def _revoke(request: Request, form: FormData) -> Response:
    store = console(request).store
    key_id = request.path_params["key_id"]
    try:
        store.keys.revoke(key_id, read_etag(form), by=actor(request))
    except EtagMismatch:
        changed = "This key was changed after you opened this page. Check it again."
        return _revoke_form(request, store.keys.get(key_id), changed)
    return RedirectResponse(f"/keys?done={key_id}", 303)


ROUTES = [
    Route("/keys", shown(_list)),
    Route("/keys", posted(_create), methods=["POST"]),
    Route("/keys/new", shown(_new)),
    Route("/keys/{key_id}/revoke", shown(_ask_to_revoke)),
    Route("/keys/{key_id}/revoke", posted(_revoke), methods=["POST"]),
]
