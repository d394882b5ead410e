"""Try a request: what every policy would decide about it, and why. Nothing is logged."""

from collections.abc import Mapping
from dataclasses import replace

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view import labels
from policyd.console.view.lookups import unrevoked_keys
from policyd.console.view.render import Console, console, posted, render, shown
from policyd.console.view.text import sentence
from policyd.console.view.typed_request import MAX_BODY, TypedRequest
from policyd.decision_log.record import Verdict
from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.model import Decision
from policyd.engine.settings import KeySettings
from policyd.errors import InvalidDescriptor, KeyNotFound
from policyd.trial import Trial, try_request

_METHODS = ("POST", "GET", "PUT", "PATCH", "DELETE")
_MISTAKES = "Nothing was tried yet: correct what is marked below."
_CALLER = "grpc"
"""The kind of caller as which the page asks: a gateway."""


def _page(request: Request) -> Response:
    if form := console(request).kept.of(request):
        return _form(request, TypedRequest.read(form), returned=True)
    asked = request.query_params
    found = {name: asked[name] for name in ("method", "path") if asked.get(name)}
    return _form(request, TypedRequest(asked.get("key", ""), **found))


def _try(request: Request, form: FormData) -> Response:
    typed = TypedRequest.read(form)
    if problems := typed.problems():
        return _form(request, typed, problems)
    here = console(request)
    try:
        settings = _settings(request, typed.key_id)
        trusted = _trusted(here)
        tried = try_request(typed.message(), settings, here.defaults, trusted)
    except KeyNotFound:
        gone = {"key": "There is no such API key any more. Choose another one."}
        return _form(request, replace(typed, key_id=""), gone)
    except InvalidDescriptor as error:
        return _form(request, typed, {"body": sentence(str(error))})
    return _form(request, typed, tried=tried)


def _trusted(here: Console) -> frozenset[str]:
    """The headers that may name an end user where the gateway sends them."""
    applied = here.store.defaults()
    if applied and applied.end_user_headers:
        return frozenset(applied.end_user_headers if _CALLER in applied.end_user_callers else ())
    return here.settings.end_users_from(_CALLER)


def _settings(request: Request, key_id: str) -> KeySettings | None:
    """The settings of a key that is in force. Raises KeyNotFound where it never was."""
    if not key_id:
        return None
    store = console(request).store
    key = store.keys.get(key_id)
    has_expired = key.expires_at is not None and key.expires_at <= store.time()
    if key.revoked_at or has_expired:
        return None
    return KeySettings(key.id, key.policies, key.accept)


def _form(
    request: Request,
    typed: TypedRequest,
    problems: Mapping[str, str] | None = None,
    *,
    tried: Trial | None = None,
    returned: bool = False,
) -> Response:
    return render(
        request,
        "try_request.html",
        status=422 if problems else 200,
        typed=typed,
        returned=returned,
        problem=_MISTAKES if problems else "",
        problems=problems or {},
        keys=unrevoked_keys(console(request).store),
        methods=_METHODS,
        paths=[f"/v1{path}" for path in ENDPOINTS if "{" not in path],
        max_body=MAX_BODY,
        tried=tried,
        verdict=_verdict(tried.decision) if tried else None,
        policies=labels.POLICIES,
        unset=_unset(tried.decision) if tried else [],
    )


def _verdict(decision: Decision) -> Verdict:
    if decision.denial:
        return Verdict.DENIED
    return Verdict.WOULD_DENY if decision.would_deny else Verdict.ALLOWED


def _unset(decision: Decision) -> list[str]:
    """The titles of the policies that neither the key nor the server sets."""
    found = {one.policy for one in decision.results}
    return [title for name, title in labels.POLICIES.items() if name not in found]


ROUTES = [
    Route("/try", shown(_page)),
    Route("/try", posted(_try), methods=["POST"]),
]
