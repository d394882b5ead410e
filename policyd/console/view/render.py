"""Renders pages: the templates, their filters, and what all of them know."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import jinja2
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from policyd.command.threads import StoreThreads
from policyd.console.security.attempts import Attempts
from policyd.console.security.client_address import Network
from policyd.console.security.sessions import Sessions
from policyd.console.view import labels
from policyd.console.view.text import plain, visible
from policyd.settings import ServerSettings
from policyd.store import Store

HERE = Path(__file__).parent.parent
_MAX_FIELDS = 50


@dataclass(frozen=True, slots=True)
class Console:
    """What the pages work on."""

    settings: ServerSettings
    store: Store
    token: str = field(repr=False)
    """The administration token."""
    sessions: Sessions
    attempts: Attempts
    proxies: Sequence[Network]
    """Whose X-Forwarded-For is believed."""
    pages: StoreThreads
    """Where pages use the store, and ..."""
    door: StoreThreads
    """... where it tells who is signed in, and strangers use it."""


def console(request: Request) -> Console:
    """The console that a request came to."""
    return cast(Console, request.app.state.console)


def render(
    request: Request,
    template: str,
    /,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    **values: Any,
) -> Response:
    """The page that `template` makes of `values`."""
    text = _environment().get_template(template).render(request=request, **values)
    return HTMLResponse(text, status, headers)


def is_fragment(request: Request) -> bool:
    """Whether htmx asks, for a part of the page that it shows."""
    return request.headers.get("hx-request") == "true"


def refuse(
    request: Request, status: int, why: str, *, headers: dict[str, str] | None = None
) -> Response:
    """The page that says why there is no other one."""
    title = _TITLES.get(status, "This did not work")
    return render(
        request, "problem.html", status=status, headers=headers, title=title, why=why, bare=True
    )


_TITLES = {
    400: "This request is not understood",
    403: "Not allowed",
    404: "Not found",
    405: "Not allowed",
    409: "Changed meanwhile",
    413: "Too much at once",
    421: "Wrong name",
    500: "Something went wrong",
    503: "The database is away",
}

Posted = Callable[[Request, FormData], Response]
_Endpoint = Callable[[Request], Awaitable[Response]]


def shown(handler: Callable[[Request], Response], *, to_strangers: bool = False) -> _Endpoint:
    """An endpoint that runs `handler` in a thread: the store blocks."""

    async def endpoint(request: Request) -> Response:
        return await _threads(request, to_strangers).run(handler, request)

    return endpoint


def posted(handler: Posted, *, by_strangers: bool = False) -> _Endpoint:
    """An endpoint that gives `handler` the form, in a thread: the store blocks."""

    async def endpoint(request: Request) -> Response:
        # In parts, a form may name any charset of Python's, which not everybody can write again.
        if request.headers.get("content-type", "").strip().lower().startswith("multipart/"):
            raise HTTPException(400, "The forms of this console are not sent in parts.")
        async with request.form(max_files=0, max_fields=_MAX_FIELDS) as form:
            return await _threads(request, by_strangers).run(handler, request, form)

    return endpoint


def _threads(request: Request, for_strangers: bool) -> StoreThreads:
    here = console(request)
    return here.door if for_strangers else here.pages


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "visible": visible,
        "plain": plain,
        "label": labels.label,
        "number": labels.number,
        "money": labels.money,
        "duration": labels.duration,
        "moment": labels.moment,
    }
    environment.globals |= {"static": _static, "labels": labels}
    return environment


@cache
def _static(name: str) -> str:
    """The URL of a static file, which changes with its content."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()
    return f"/static/{name}?{digest[:12]}"
