"""Rotate: a key gets a new secret. The previous one stays valid for a while, for its clients."""

from datetime import timedelta

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view.actor import actor
from policyd.console.view.forms import read_etag, text
from policyd.console.view.render import console, posted, render, shown
from policyd.console.view.snippets import snippets
from policyd.console.view.text import sentence
from policyd.engine.settings import ApiKey
from policyd.errors import EtagMismatch, InvalidArgument, KeyRevoked, OlderServers

_KEEP = {
    "0": ("Not at all: it ends now", timedelta()),
    "1h": ("1 hour", timedelta(hours=1)),
    "1d": ("1 day", timedelta(days=1)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
}
_USUAL = "7d"
_CHANGED = "This key was changed after you opened this page. Check it again."


def _ask(request: Request) -> Response:
    return _form(request, console(request).store.keys.get(request.path_params["key_id"]))


def _form(request: Request, key: ApiKey, problem: str = "", status: int = 409) -> Response:
    store = console(request).store
    return render(
        request,
        "rotate_key.html",
        status=status if problem else 200,
        key=key,
        problem=problem,
        keep=_KEEP,
        usual=_USUAL,
        now=store.time(),
        used=store.key_list.last_used([key.id]).get(key.id),
    )


def _rotate(request: Request, form: FormData) -> Response:
    here = console(request)
    key_id = request.path_params["key_id"]
    key = here.store.keys.get(key_id)
    if text(form, "keep") not in _KEEP:
        return _form(request, key, "Choose how long the current secret stays valid.", 422)
    keep = _KEEP[text(form, "keep")][1]
    try:
        key, secret = here.store.keys.rotate(key_id, keep, read_etag(form), by=actor(request))
    except (EtagMismatch, KeyRevoked):
        return _form(request, here.store.keys.get(key_id), _CHANGED)
    except (InvalidArgument, OlderServers) as error:
        return _form(request, key, sentence(str(error)))
    gateway = here.settings.console_gateway_url
    return render(
        request,
        "created_key.html",
        status=201,
        title="API key rotated",
        key=key,
        secret=secret,
        url=gateway.rstrip("/"),
        snippets=snippets(gateway, secret),
    )


ROUTES = [
    Route("/keys/{key_id}/rotate", shown(_ask)),
    Route("/keys/{key_id}/rotate", posted(_rotate), methods=["POST"]),
]
