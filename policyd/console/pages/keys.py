"""API Keys: search, list, create and revoke them."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import NamedTuple

from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from policyd.console.view import sorting
from policyd.console.view.actor import actor
from policyd.console.view.forms import read_etag, text
from policyd.console.view.panels import Panel, default_mode, is_set
from policyd.console.view.render import BATCH, console, posted, render, shown
from policyd.console.view.snippets import snippets
from policyd.console.view.sorting import Sorting
from policyd.console.view.text import sentence
from policyd.console.view.typed_settings import TypedPolicy
from policyd.engine.settings import ApiKey, Setting, Settings, setting_of
from policyd.engine.states import Override
from policyd.errors import EtagMismatch, InvalidArgument, NameTaken
from policyd.policies import TABLE
from policyd.store import MAX_NAME, KeyFilter, Store

_COLUMNS = {"created": "Created (UTC)", "name": "Name", "used": "Last used (UTC)"}
_ASCENDING = ("created", "name")


class _Row(NamedTuple):
    """A key with what it sets."""

    key: ApiKey
    original: Setting
    others: Settings
    """The settings of all other policies that the key sets."""
    used: datetime | None


def _row(key: ApiKey, used: datetime | None) -> _Row:
    original = TABLE.original.name
    others = [(name, one) for name, one in key.policies if name != original and is_set(one)]
    return _Row(key, setting_of(key.policies, original), tuple(others), used)


def _list(request: Request) -> Response:
    here = console(request)
    asked = request.query_params
    wanted = KeyFilter(asked.get("find", "").strip()[:MAX_NAME], "revoked" in asked)
    kept = {"find": wanted.text, "revoked": "1" if wanted.show_revoked else ""}
    table = sorting.read("/keys", asked, tuple(_COLUMNS), _ASCENDING, kept)
    keys, previous, following = _page(here.store, wanted, table, asked)
    used = here.store.key_list.last_used([key.id for key in keys])
    return render(
        request,
        "keys.html",
        rows=[_row(key, used.get(key.id)) for key in keys],
        table=table,
        columns=_COLUMNS,
        wanted=wanted,
        previous=previous,
        next=following,
        is_empty=not keys and not wanted.text,
        now=here.store.time(),
        original=TABLE.original,
        any=Override.ANY,
        default=default_mode(TABLE.original, here.defaults),
        told=_told(request),
    )


def _page(
    store: Store, wanted: KeyFilter, table: Sorting, asked: QueryParams
) -> tuple[list[ApiKey], str, str]:
    """The keys of the page that a URL asks for, and the URLs of the previous and the next page; ""
    where there is none."""
    page = partial(store.key_list.page, wanted, sort=table.sort, descending=table.is_descending)
    after, before = asked.get("after", ""), asked.get("before", "")
    if before and not after:
        found = page(before=before, limit=BATCH + 1)
        if len(found) > BATCH:
            keys = found[1:]
            return keys, table.url(before=keys[0].id), table.url(after=keys[-1].id)
    found = page(after=after, limit=BATCH + 1)
    keys = found[:BATCH]
    previous = (table.url(before=keys[0].id) if keys else table.url()) if after else ""
    return keys, previous, table.url(after=keys[-1].id) if len(found) > BATCH else ""


def _told(request: Request) -> str:
    """What was just done to keys, as a sentence; "" where nothing was."""
    asked = request.query_params
    done = asked.getlist("done")[:BATCH]
    keys = console(request).store.key_list.chosen(done) if done else []
    # A link may name any key: only those that are revoked are reported as revoked.
    revoked = [key.name for key in keys if key.revoked_at]
    if len(revoked) == 1:
        return f"“{revoked[0]}” is revoked. Requests with it are denied within a second."
    if revoked:
        return f"{len(revoked)} keys are revoked. Requests with them are denied within a second."
    changed = asked.get("changed", "")
    if not (changed.isascii() and changed.isdecimal() and len(changed) < 4):
        return ""
    count = int(changed)
    return f"{count} {'key is' if count == 1 else 'keys are'} changed, in one revision."


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
    policies = TABLE.with_original(typed.setting().mode)
    try:
        key, secret = here.store.keys.create(name, policies, by=actor(request))
    except (InvalidArgument, NameTaken) as error:
        return _new_form(request, name, typed, {"name": sentence(str(error))})
    return render(
        request,
        "created_key.html",
        status=201,
        title="API key created",
        key=key,
        secret=secret,
        url=here.settings.console_gateway_url.rstrip("/"),
        snippets=snippets(here.settings.console_gateway_url, secret),
    )


def _ask_to_revoke(request: Request) -> Response:
    return _revoke_form(request, console(request).store.keys.get(request.path_params["key_id"]))


def _revoke_form(request: Request, key: ApiKey, problem: str = "") -> Response:
    return render(
        request,
        "revoke_key.html",
        status=409 if problem else 200,
        key=key,
        problem=problem,
        used=console(request).store.key_list.last_used([key.id]).get(key.id),
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
