"""Settings of one API key: change them, and see how many workers have them."""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from policyd.console.view.actor import actor
from policyd.console.view.forms import read_etag
from policyd.console.view.panels import Panel, panels, unknown
from policyd.console.view.render import console, posted, render, shown
from policyd.console.view.text import sentence
from policyd.console.view.typed_settings import TypedSettings
from policyd.engine.endpoints import ENDPOINTS, without_place
from policyd.engine.places import USER
from policyd.engine.settings import ApiKey
from policyd.errors import EtagMismatch, InvalidArgument, KeyRevoked, NameTaken, OlderServers
from policyd.store import MAX_NAME

_MISTAKES = "Nothing was saved yet: correct what is marked below."
_CHANGED = (
    "This key was changed after you opened this page, so nothing was saved yet. Your values are "
    "still in the form; Save now replaces the saved ones."
)
_REVOKED = "This key was revoked after you opened this page, so nothing was saved."


def _show(request: Request) -> Response:
    here = console(request)
    key = here.store.keys.get(request.path_params["key_id"])
    if form := here.kept.of(request):
        typed = TypedSettings.read(form, key)
        return _form(request, key, typed, etag=read_etag(form), returned=True)
    return _form(request, key, TypedSettings.of(key))


def _form(
    request: Request,
    key: ApiKey,
    typed: TypedSettings,
    problem: str = "",
    status: int = 200,
    *,
    problems: Mapping[str, str] | None = None,
    etag: str = "",
    conflict: bool = False,
    returned: bool = False,
) -> Response:
    return render(
        request,
        "key_settings.html",
        status=status,
        key=key,
        typed=typed,
        etag=etag or key.etag,
        returned=returned,
        problem=problem,
        problems=problems or {},
        differing=_differing(key, typed) if conflict else [],
        panels=_main_first(panels(typed, key.policies, console(request).defaults, problems or {})),
        now=console(request).store.time(),
        unknown=unknown(key.policies),
        without_place=_without_place(key),
        max_name=MAX_NAME,
        saved=_in_force(request, key) if "saved" in request.query_params else None,
    )


def _main_first(found: list[Panel]) -> list[Panel]:
    """The panels, with that of the original policy, the key's main switch, before all others."""
    return sorted(found, key=lambda panel: not panel.policy.is_original)


def _without_place(key: ApiKey) -> tuple[list[str], list[str]]:
    """The operations that have none of the places that a key accepts: those on which `user` counts
    instead, and those on which nothing does."""
    with_user = {one.operation for one in ENDPOINTS.values() if USER in one.identifiers}
    operations = without_place(key.accept)
    return (
        [one for one in operations if one in with_user],
        [one for one in operations if one not in with_user],
    )


def _differing(key: ApiKey, typed: TypedSettings) -> list[tuple[str, str, str]]:
    """The settings whose saved and typed values differ: name, saved value, typed value."""
    saved = TypedSettings.of(key).labelled()
    return [
        (name, saved[name], mine) for name, mine in typed.labelled().items() if mine != saved[name]
    ]


def _save(request: Request, form: FormData) -> Response:
    store = console(request).store
    key = store.keys.get(request.path_params["key_id"])
    typed = TypedSettings.read(form, key)
    # The form's own etag goes on, so that a change made meanwhile is still reported.
    etag = read_etag(form)
    if problems := typed.problems(key):
        return _form(request, key, typed, _MISTAKES, 422, problems=problems, etag=etag)
    try:
        store.keys.update(key.id, typed.changes(key), etag, by=actor(request))
    except OlderServers as error:
        problems = {"expires": sentence(str(error))}
        return _form(request, key, typed, _MISTAKES, 422, problems=problems, etag=etag)
    except (InvalidArgument, NameTaken) as error:
        # All but the name was checked above.
        problems = {"name": sentence(str(error))}
        return _form(request, key, typed, _MISTAKES, 422, problems=problems, etag=etag)
    except EtagMismatch:
        return _form(request, store.keys.get(key.id), typed, _CHANGED, 409, conflict=True)
    except KeyRevoked:
        return _form(request, store.keys.get(key.id), typed, _REVOKED, 409)
    return RedirectResponse(f"/keys/{key.id}?saved", 303)


def _in_force(request: Request, key: ApiKey) -> dict[str, Any]:
    running = console(request).store.workers.list()
    gateways = sum(one.is_gateway for one in running)
    return {
        "revision": key.revision,
        "have": sum(one.revision >= key.revision for one in running),
        "all": len(running),
        "workers": len(running) - gateways,
        "gateways": gateways,
    }


def _in_force_line(request: Request) -> Response:
    key = console(request).store.keys.get(request.path_params["key_id"])
    return render(request, "in_force.html", key=key, saved=_in_force(request, key))


ROUTES = [
    Route("/keys/{key_id}", shown(_show)),
    Route("/keys/{key_id}", posted(_save), methods=["POST"]),
    Route("/keys/{key_id}/in-force", shown(_in_force_line)),
]
