"""Before you switch it on: what enforcing one policy would have done to a key's own requests."""

from datetime import timedelta

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view.render import console, is_fragment, posted, render, shown
from policyd.console.view.text import sentence
from policyd.console.view.typed_settings import TypedSettings
from policyd.engine.places import can_accept
from policyd.engine.policy import Policy
from policyd.engine.settings import ApiKey, KeySettings, Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.policies import TABLE
from policyd.simulation import simulate

_PERIODS = {"24h": ("Last 24 hours", timedelta(days=1)), "7d": ("Last 7 days", timedelta(days=7))}


def _of_saved(request: Request) -> Response:
    """The simulation by the settings as they are saved."""
    key = console(request).store.keys.get(request.path_params["key_id"])
    return _page(request, key, TypedSettings.of(key))


def _of_typed(request: Request, form: FormData) -> Response:
    """The simulation by the settings as they are in the form."""
    key = console(request).store.keys.get(request.path_params["key_id"])
    return _page(request, key, TypedSettings.read(form, key))


def _page(request: Request, key: ApiKey, typed: TypedSettings) -> Response:
    here = console(request)
    policy = TABLE.by_name.get(request.query_params.get("policy", TABLE.original.name))
    if policy is None:
        raise HTTPException(404)
    asked = request.query_params.get("period", "")
    period = asked if asked in _PERIODS else "24h"
    until = here.store.time()
    problem, result = "", None
    try:
        settings = KeySettings(key.id, _alone(policy, typed), _accept(key, typed))
    except ValueError as error:
        problem = sentence(str(error))
    else:
        since = until - _PERIODS[period][1]
        result = simulate(here.store, key.id, settings, since, until, ())
    return render(
        request,
        "simulation.html",
        layout="fragment.html" if is_fragment(request) else "layout.html",
        key=key,
        policy=policy,
        problem=problem,
        result=result,
        period=period,
        periods=_PERIODS,
    )


def _alone(policy: Policy, typed: TypedSettings) -> Settings:
    """Settings by which this policy alone decides. Raises ValueError where its value is not
    valid."""
    # Locked, so that no header switches on another one.
    off = Setting(Mode.OFF, override=Override.LOCKED)
    return tuple(
        (one.policy.name, one.enforced() if one.policy is policy else off) for one in typed.policies
    )


def _accept(key: ApiKey, typed: TypedSettings) -> tuple[str, ...]:
    accept = typed.accept(key.accept)
    return accept if can_accept(accept) else key.accept


ROUTES = [
    Route("/keys/{key_id}/simulation", shown(_of_saved)),
    Route("/keys/{key_id}/simulation", posted(_of_typed), methods=["POST"]),
]
