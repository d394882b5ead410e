"""Guards: what every request has to pass before it reaches a page, and the headers of each
answer."""

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Answer = Callable[[Request, int, str], Response]
"""Makes the page for a request that is not served, from the status and the reason."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer, browsers would send `Origin: null` with the console's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def public_origin(url: str) -> str:
    """The origin of a URL as browsers write it: in lower case, without the scheme's default
    port."""
    parts = urlsplit(url)
    usual = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(usual)}"


class SafeHeaders:
    """Adds the headers that keep a page from running or loading anything from another origin, and
    from revealing its address to other origins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Guard:
    """Passes on to `app` the requests that it accepts, and answers all others by `answer`. `public`
    is the host, or the origin, that browsers see behind a proxy."""

    def __init__(self, app: ASGIApp, answer: Answer, public: str) -> None:
        self._app = app
        self._answer = answer
        self._public = public


class OwnHost(_Guard):
    """Rejects requests for a host name other than a loopback one or `public`. This is
    against DNS rebinding: another site's name may point to this machine, and its pages could then
    read the console's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "")
        if is_loopback(host) or (self._public and host == self._public):
            await self._app(scope, receive, send)
            return
        why = (
            "This console listens on this machine only, and the request names another host. "
            "Open it as 127.0.0.1 or localhost; behind a proxy, start policyd with --console-url."
        )
        await self._answer(Request(scope), 421, why)(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class SameOrigin(_Guard):
    """Rejects requests that a page of another site has a browser send (CSRF). `public` is the
    origin that browsers see behind a proxy."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if request.method in _SAFE_METHODS or _is_same_origin(request, self._public):
            await self._app(scope, receive, send)
            return
        why = (
            "This request did not come from a page of this console. Go back, reload the page, and "
            "try again. Behind a proxy, start policyd with --console-url."
        )
        await self._answer(request, 403, why)(scope, receive, send)


def _is_same_origin(request: Request, public: str) -> bool:
    """Whether the request has at least one of the two headers that browsers send, and none that
    names another origin."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is None and origin is None:
        return False
    # "none": the user opened it, not a page.
    if site not in (None, "same-origin", "none"):
        return False
    own = public or f"{request.url.scheme}://{request.headers.get('host')}"
    return origin is None or origin == own


class SignedIn:
    """Serves requests of a session; `ask` answers the others, and leads them to the sign-in."""

    def __init__(
        self,
        app: ASGIApp,
        is_signed_in: Callable[[Request], Awaitable[bool]],
        ask: Callable[[Request], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._is_signed_in = is_signed_in
        self._ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if await self._is_signed_in(request):
            await self._app(scope, receive, send)
        else:
            answer = await self._ask(request)
            await answer(scope, receive, send)
