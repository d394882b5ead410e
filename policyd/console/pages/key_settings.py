"""Settings of one API key: change them, see where they are in force, and simulate them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any, Self, TypeVar

from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from policyd.console.view import labels
from policyd.console.view.forms import read_etag, read_mode
from policyd.console.view.render import console, is_fragment, posted, render, shown
from policyd.engine.model import (
    IDENTIFIERS,
    ApiKey,
    KeySettings,
    Mode,
    Override,
    are_identifiers,
)
from policyd.errors import EtagMismatch, InvalidArgument, KeyRevoked
from policyd.policies import TABLE
from policyd.simulation import simulate
from policyd.store import MAX_NAME

_Kind = TypeVar("_Kind", bound=IntEnum)
PERIODS = {"24h": ("Last 24 hours", timedelta(days=1)), "7d": ("Last 7 days", timedelta(days=7))}


@dataclass(frozen=True, slots=True)
class Typed:
    """The settings as typed into the form, valid or not, so that the form can be shown again."""

    name: str
    mode: str
    override: str
    accept: tuple[str, ...]

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """The settings of a key."""
        original = TABLE.original_of(key.policies)
        mode = original.mode.name.lower() if original.mode else ""
        return cls(key.name, mode, (original.override or Override.ANY).name.lower(), key.accept)

    @classmethod
    def read(cls, form: FormData | QueryParams) -> Self:
        """The settings in a form."""
        values = {name: str(form.get(name, "")) for name in ("name", "mode", "override")}
        return cls(**values, accept=tuple(map(str, form.getlist("accept"))))

    def changes(self) -> dict[str, Any]:
        """The settings as the store takes them. Raises InvalidArgument."""
        try:
            override = Override[self.override.upper()]
        except KeyError:
            raise InvalidArgument("who may override is any, tighten_only or locked") from None
        mode = read_mode(self.mode)
        if not are_identifiers(self.accept):
            raise InvalidArgument("choose at least one identifier that counts as a user")
        return {
            "name": self.name,
            "policies": lambda current: TABLE.with_original(mode, override, current),
            "accept": self.accept,
        }

    def labelled(self) -> Mapping[str, str]:
        """Each setting's name and value, as the console shows them."""
        return {
            "Name": self.name,
            "Enforce User IDs": _label(Mode, labels.MODES, self.mode) or "Server's default",
            "Who may override": _label(Override, labels.OVERRIDES, self.override),
            "Accepted identifiers": ", ".join(self.accept) or "none",
        }


def _label(kind: type[_Kind], labels: Mapping[_Kind, tuple[str, str]], name: str) -> str:
    """The label of the member of `kind` with this name; any other name unchanged."""
    member = kind.__members__.get(name.upper())
    return labels[member][0] if member else name


def _show(request: Request) -> Response:
    key = console(request).store.keys.get(request.path_params["key_id"])
    return _form(request, key, Typed.of(key))


def _form(
    request: Request,
    key: ApiKey,
    typed: Typed,
    problem: str = "",
    status: int = 200,
    *,
    etag: str = "",
    conflict: bool = False,
) -> Response:
    here = console(request)
    saved = Typed.of(key).labelled()
    differing = [
        (name, saved[name], mine) for name, mine in typed.labelled().items() if mine != saved[name]
    ]
    return render(
        request,
        "key_settings.html",
        status=status,
        key=key,
        typed=typed,
        etag=etag or key.etag,
        problem=problem,
        differing=differing if conflict else [],
        default=here.settings.default_mode,
        max_name=MAX_NAME,
        modes=list(Mode),
        overrides=list(Override),
        identifiers=IDENTIFIERS,
        periods=PERIODS,
        saved=_in_force(request, key) if "saved" in request.query_params else None,
    )


def _save(request: Request, form: FormData) -> Response:
    store = console(request).store
    key_id = request.path_params["key_id"]
    typed = Typed.read(form)
    etag = read_etag(form)
    try:
        store.keys.update(key_id, typed.changes(), etag)
    except InvalidArgument as error:
        message = str(error)
        problem = f"{message[:1].upper()}{message[1:]}."
        # With the form's own etag, so that a change made meanwhile is still reported.
        return _form(request, store.keys.get(key_id), typed, problem, 422, etag=etag)
    except EtagMismatch:
        problem = (
            "This key was changed after you opened this page, so nothing was saved yet. Your "
            "values are still in the form; Save now replaces the saved ones."
        )
        return _form(request, store.keys.get(key_id), typed, problem, 409, conflict=True)
    except KeyRevoked:
        problem = "This key was revoked after you opened this page, so nothing was saved."
        return _form(request, store.keys.get(key_id), typed, problem, 409)
    return RedirectResponse(f"/keys/{key_id}?saved", 303)


def _in_force(request: Request, key: ApiKey) -> dict[str, Any]:
    workers = console(request).store.workers.list()
    have = sum(worker.revision >= key.revision for worker in workers)
    return {"revision": key.revision, "have": have, "workers": len(workers)}


def _in_force_line(request: Request) -> Response:
    key = console(request).store.keys.get(request.path_params["key_id"])
    return render(request, "in_force.html", key=key, saved=_in_force(request, key))


def _simulation(request: Request) -> Response:
    here = console(request)
    key = here.store.keys.get(request.path_params["key_id"])
    period = request.query_params.get("period", "24h")
    _, length = PERIODS.get(period, PERIODS["24h"])
    typed = (
        Typed.read(request.query_params) if "override" in request.query_params else Typed.of(key)
    )
    try:
        chosen = typed.changes()
    except InvalidArgument:
        chosen = Typed.of(key).changes()
    override = TABLE.original_of(chosen["policies"](())).override
    policies = TABLE.with_original(Mode.ENFORCE, override, key.policies)
    settings = KeySettings(key.id, policies, chosen["accept"])
    until = here.store.time()
    result = simulate(
        here.store,
        key.id,
        settings,
        until - length,
        until,
        TABLE.with_original(here.settings.default_mode),
    )
    return render(
        request,
        "simulation.html",
        layout="fragment.html" if is_fragment(request) else "layout.html",
        key=key,
        result=result,
        period=period if period in PERIODS else "24h",
        periods=PERIODS,
    )


ROUTES = [
    Route("/keys/{key_id}", shown(_show)),
    Route("/keys/{key_id}", posted(_save), methods=["POST"]),
    Route("/keys/{key_id}/in-force", shown(_in_force_line)),
    Route("/keys/{key_id}/simulation", shown(_simulation)),
]
