"""API Keys: list, create and revoke them."""

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from policyd.console.view.forms import read_etag, read_mode, text
from policyd.console.view.render import console, posted, render, shown
from policyd.engine.model import ApiKey, Mode
from policyd.errors import EtagMismatch, InvalidArgument
from policyd.policies import TABLE
from policyd.store import MAX_NAME

_PAGE = 100


def _list(request: Request) -> Response:
    here = console(request)
    show_revoked = "revoked" in request.query_params
    after = request.query_params.get("after", "")
    found = here.store.keys.list(after=after, limit=_PAGE + 1, show_revoked=show_revoked)
    return render(
        request,
        "keys.html",
        keys=found[:_PAGE],
        after=found[_PAGE - 1].id if len(found) > _PAGE else "",
        is_first=not after,
        show_revoked=show_revoked,
        default=here.settings.default_mode,
        just_revoked=_revoked_name(request, request.query_params.get("done", "")),
    )


def _revoked_name(request: Request, key_id: str) -> str:
    # A link may name any key: only one that is revoked is reported as revoked.
    key = console(request).store.keys.get(key_id) if key_id else None
    return key.name if key and key.revoked_at else ""


def _new(request: Request) -> Response:
    return _new_form(request)


def _new_form(request: Request, name: str = "", mode: str = "", problem: str = "") -> Response:
    return render(
        request,
        "new_key.html",
        status=422 if problem else 200,
        name=name,
        mode=mode,
        problem=problem,
        modes=list(Mode),
        default=console(request).settings.default_mode,
        max_name=MAX_NAME,
    )


def _create(request: Request, form: FormData) -> Response:
    here = console(request)
    name, mode = text(form, "name"), text(form, "mode")
    try:
        key, secret = here.store.keys.create(name, TABLE.with_original(read_mode(mode)))
    except InvalidArgument as error:
        return _new_form(request, name, mode, str(error).capitalize() + ".")
    url = here.settings.console_gateway_url.rstrip("/")
    return render(request, "created_key.html", status=201, key=key, secret=secret, url=url)


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
        store.keys.revoke(key_id, read_etag(form))
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
