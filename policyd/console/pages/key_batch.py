"""Several API keys at once: one policy is set for all, or all are revoked, after a summary."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from policyd.console.view.actor import actor
from policyd.console.view.forms import text
from policyd.console.view.render import BATCH, console, posted, render, shown
from policyd.console.view.typed_settings import TypedPolicy
from policyd.engine.settings import ApiKey, Setting, Settings, setting_of
from policyd.engine.states import Override
from policyd.errors import EtagMismatch, KeyNotFound
from policyd.policies import TABLE

_DEFAULT = "default"
"""The form's value for a key that sets no mode."""
_KEEP = "keep"
"""The form's value that leaves the override of each key as it is."""
_CHANGED = (
    "At least one of these keys was changed after this summary was made, so none was changed yet. "
    "This is how they are now."
)


class _Wanted(NamedTuple):
    """What a form asks for."""

    revoke: bool
    typed: TypedPolicy
    has_mode: bool = False
    """Whether a mode was chosen: none is until the administrator chooses one."""

    @classmethod
    def read(cls, form: FormData) -> Self:
        """What was typed. An unknown policy counts as the original one."""
        policy = TABLE.by_name.get(text(form, "policy"), TABLE.original)
        mode, value, override = (text(form, name).strip() for name in ("mode", "value", "override"))
        typed = TypedPolicy(policy, "" if mode == _DEFAULT else mode, value, override)
        return cls(text(form, "do") == "revoke", typed, has_mode=mode != "")

    def problems(self) -> dict[str, str]:
        """What is wrong with each field, by the field's name."""
        if not (self.revoke or self.has_mode):
            return {"mode": "Choose a mode."}
        kept = self.typed._replace(override="any") if self._keeps_override else self.typed
        found = {} if self.revoke else kept.problems()
        return {name.partition(".")[0]: told for name, told in found.items()}

    def new(self, before: Setting) -> Setting:
        """The setting of a key that had `before`, where there are no problems."""
        if self._keeps_override:
            kept = self.typed._replace(override="any").setting()
            return kept._replace(override=before.override)
        return self.typed.setting()

    def change(self, before: Settings) -> Settings:
        """The settings of a key that had `before`."""
        name = self.typed.policy.name
        new = self.new(setting_of(before, name))
        return TABLE.in_order((dict(before) | {name: new}).items())

    @property
    def _keeps_override(self) -> bool:
        return self.typed.override == _KEEP


def _choose(request: Request) -> Response:
    ids = request.query_params.getlist("key")[:BATCH]
    typed = TypedPolicy(TABLE.original, override=_KEEP)
    return _form(request, ids, _Wanted(revoke=False, typed=typed))


def _form(
    request: Request,
    ids: Sequence[str],
    wanted: _Wanted,
    problems: Mapping[str, str] | None = None,
) -> Response:
    return render(
        request,
        "key_batch.html",
        status=422 if problems else 200,
        keys=_in_force(request, ids),
        typed=wanted.typed,
        has_mode=wanted.has_mode,
        default=_DEFAULT,
        policies=TABLE.policies,
        problems=problems or {},
        keep=_KEEP,
    )


def _in_force(request: Request, ids: Sequence[str]) -> list[ApiKey]:
    found = console(request).store.key_list.chosen(ids)
    return [key for key in found if not key.revoked_at]


def _change(request: Request, form: FormData) -> Response:
    wanted = _Wanted.read(form)
    chosen = dict(str(one).partition(" ")[::2] for one in form.getlist("key")[:BATCH])
    if not chosen:
        return _form(request, (), wanted)
    if problems := wanted.problems():
        return _form(request, list(chosen), wanted, problems)
    if not text(form, "confirmed"):
        return _summary(request, list(chosen), wanted)
    batches = console(request).store.key_batches
    by = actor(request)
    try:
        if wanted.revoke:
            batches.revoke(chosen, by=by)
            done = "&".join(f"done={key_id}" for key_id in chosen)
            return RedirectResponse(f"/keys?{done}", 303)
        batches.set_policies(chosen, wanted.change, by=by)
    except (EtagMismatch, KeyNotFound):
        return _summary(request, list(chosen), wanted, _CHANGED)
    return RedirectResponse(f"/keys?changed={len(chosen)}", 303)


def _summary(request: Request, ids: Sequence[str], wanted: _Wanted, problem: str = "") -> Response:
    keys = _in_force(request, ids)
    name = wanted.typed.policy.name
    rows = [(key, setting_of(key.policies, name)) for key in keys]
    return render(
        request,
        "key_batch_summary.html",
        status=409 if problem else 200,
        rows=[(key, before, None if wanted.revoke else wanted.new(before)) for key, before in rows],
        wanted=wanted,
        default=_DEFAULT,
        any=Override.ANY,
        typed=wanted.typed,
        used=console(request).store.key_list.last_used([key.id for key in keys]),
        problem=problem,
    )


ROUTES = [
    Route("/keys/change", shown(_choose)),
    Route("/keys/change", posted(_change), methods=["POST"]),
]
