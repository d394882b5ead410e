"""The console's application: its pages, and the guards that each request passes before them."""

import logging
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from policyd.asgi.probes import Probes
from policyd.command.threads import StoreThreads
from policyd.console.pages import (
    account,
    audit,
    dashboard,
    end_users,
    first_password,
    key_batch,
    key_rotation,
    key_settings,
    key_use,
    keys,
    log_details,
    logs,
    refused_keys,
    sign_in,
    simulation,
    try_request,
)
from policyd.console.security.guards import (
    OwnHost,
    SafeHeaders,
    SameOrigin,
    SignedIn,
    public_origin,
)
from policyd.console.view.render import HERE, Console, refuse
from policyd.errors import (
    DecisionNotFound,
    KeyNotFound,
    PolicydError,
    StoreBusy,
    StoreUnavailable,
)

_log = logging.getLogger(__name__)

_MAX_BODY = 2**20
"""Bytes that a form may have: the lists of a key's policies may be long."""
_AWAY = (
    "The console cannot reach the database, so it has nothing to show. policyd goes on deciding, "
    "as that needs no database. Check the database, then reload this page."
)
_BUSY = "The console is working on too many pages. Wait a few seconds, then reload this page."
_PAGES = (
    dashboard,
    keys,
    key_batch,
    key_settings,  # after these: else /keys/new would show the settings of a key "new"
    key_rotation,
    key_use,
    audit,
    simulation,
    logs,
    log_details,
    end_users,
    refused_keys,
    try_request,
    sign_in,
    account,
)
_PROBES = 100
"""Probes that may wait for the database."""


def application(console: Console) -> ASGIApp:
    """The ASGI application."""
    url = console.settings.console_url
    public = public_origin(url) if url else ""
    before = []
    if console.settings.console and console.settings.console.is_loopback:
        before.append(Middleware(OwnHost, refuse, urlsplit(public).netloc))
    before.append(Middleware(SameOrigin, refuse, public))
    guard = Middleware(SignedIn, sign_in.is_signed_in, sign_in.ask)
    private = [route for page in _PAGES for route in page.ROUTES]
    app = Starlette(
        routes=[
            Mount("/static", _Static(directory=HERE / "static")),
            *sign_in.PUBLIC,
            *first_password.PUBLIC,
            Mount("/", routes=private, middleware=[guard]),
        ],
        middleware=before,
        exception_handlers={
            HTTPException: _http_error,
            StoreUnavailable: _store_away,
            StoreBusy: _store_busy,
            KeyNotFound: _not_found,
            DecisionNotFound: _not_found,
            Exception: _unexpected,
        },
        max_body_size=_MAX_BODY,
    )
    app.state.console = console
    # Outermost, so that the page of an unexpected error has these headers, too.
    return _Probed(SafeHeaders(app), console)


class _Probed:
    """Answers probes before the guards: probes have no session, and may use any host name."""

    def __init__(self, app: ASGIApp, console: Console) -> None:
        self._app = app
        self._console = console
        self._probes = Probes(self._not_ready)
        # Threads of their own, so that pages which wait for the database do not delay probes.
        self._threads = StoreThreads("probes", console.settings.database_timeout, waiting=_PROBES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if probed := await self._probes.answer(scope["method"], scope["path"]):
            app = Response(probed.body, probed.status, dict(probed.headers))
        await app(scope, receive, send)

    async def _not_ready(self) -> str:
        try:
            await self._threads.run(self._console.store.identity)
        except (StoreUnavailable, StoreBusy):
            return "the database cannot be reached"
        return ""


class _Static(StaticFiles):
    """Static files, which browsers may cache: the URL changes with the content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See StaticFiles."""
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    why = {
        404: "There is no such page. It may have moved, or the link is incomplete.",
        405: "This page does not accept such a request.",
        413: "The form is larger than this console accepts.",
    }.get(error.status_code, error.detail)
    return refuse(request, error.status_code, why, headers=dict(error.headers or {}))


async def _store_away(request: Request, error: Exception) -> Response:
    _log.warning("a page cannot be shown: %s", error)
    return refuse(request, 503, _AWAY, headers={"Retry-After": "5"})


async def _store_busy(request: Request, error: Exception) -> Response:
    return refuse(request, 503, _BUSY, headers={"Retry-After": "5"})


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, PolicydError)
    message = str(error)
    return refuse(request, 404, message[:1].upper() + message[1:] + ".")


async def _unexpected(request: Request, _: Exception) -> Response:
    return refuse(request, 500, "The server's log has the details. Go back and try again.")
