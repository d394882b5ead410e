"""Renders pages: the templates with their filters, and the Console that all pages work with."""

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

from policyd.build_info import version
from policyd.command.networks import Network
from policyd.command.threads import StoreThreads
from policyd.console.security.attempts import Attempts
from policyd.console.security.kept_forms import KeptForms
from policyd.console.security.sessions import Sessions
from policyd.console.view import documentation, flags, labels
from policyd.console.view.text import plain, sentence, visible
from policyd.engine.settings import Settings
from policyd.keys.defaults import above
from policyd.policies import TABLE
from policyd.settings import ServerSettings
from policyd.store import Store

HERE = Path(__file__).parent.parent
BATCH = 100
"""API keys that a page lists, and that can be changed at once."""
_MAX_FIELDS = 50 + BATCH + 3 * len(TABLE.policies)


@dataclass(frozen=True, slots=True)
class Console:
    """What the pages work with."""

    settings: ServerSettings
    store: Store
    token: str = field(repr=False)
    """The administration token."""
    sessions: Sessions
    attempts: Attempts
    proxies: Sequence[Network]
    """Networks of the proxies whose X-Forwarded-For header is believed."""
    pages: StoreThreads
    """Threads in which pages use the store."""
    door: StoreThreads
    """Threads in which sessions are checked, and in which clients without a session use the
    store."""
    kept: KeptForms = field(default_factory=KeptForms)
    """Forms that were sent after their session had ended, and wait for their pages."""

    @property
    def defaults(self) -> Settings:
        """What the server sets for keys that set nothing."""
        own = TABLE.with_original(self.settings.default_mode)
        return above(self.store.defaults(), own)


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
    """Whether htmx asks for a part of a page."""
    return request.headers.get("hx-request") == "true"


def refuse(
    request: Request, status: int, why: str, *, headers: dict[str, str] | None = None
) -> Response:
    """The page that says why the request is not served."""
    title = _TITLES.get(status, "This did not work")
    return render(
        request, "problem.html", status=status, headers=headers, title=title, why=why, bare=True
    )


_TITLES = {
    400: "Not a valid request",
    403: "Not allowed",
    404: "Not found",
    405: "Not allowed",
    409: "Changed meanwhile",
    413: "Too much at once",
    421: "Wrong host name",
    500: "Something went wrong",
    503: "Not available now",
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
        # A part could name any charset of Python's, and some of them cannot encode its text again.
        if request.headers.get("content-type", "").strip().lower().startswith("multipart/"):
            raise HTTPException(400, "This console does not accept forms as multipart/form-data.")
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
        "sentence": sentence,
        "label": labels.label,
        "number": labels.number,
        "money": labels.money,
        "duration": labels.duration,
        "moment": labels.moment,
    }
    environment.globals |= {"static": _static, "labels": labels, "flag_words": flags}
    environment.globals |= {"documentation": documentation, "policyd_version": version()}
    return environment


@cache
def _static(name: str) -> str:
    """The URL of a static file, which changes with its content."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()
    return f"/static/{name}?{digest[:12]}"
