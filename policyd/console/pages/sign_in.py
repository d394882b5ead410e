"""Sign-in: signing in and out, and whether a request belongs to a session."""

from datetime import timedelta
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from policyd.console.security import credentials, kept_forms
from policyd.console.security.sessions import LIFETIME
from policyd.console.view.actor import address, note
from policyd.console.view.forms import text
from policyd.console.view.render import Console, console, is_fragment, posted, render, shown
from policyd.decision_log.refused_key import source_of
from policyd.keys.audit import Action
from policyd.store.administrator import Credentials

MAX_BODY = 64 * 2**10
"""Bytes that a form of a client without a session may have."""
TOO_MANY = "Too many attempts. Wait {} seconds, then try again."
_TOO_MANY_OF_ALL = (
    "Too many attempts were made from all addresses together. Wait {} seconds, then try again; or "
    "sign in with the administration token, or on a device that has signed in before."
)


async def is_signed_in(request: Request) -> bool:
    """Whether the request belongs to a session. Raises StoreUnavailable or StoreBusy."""
    return await console(request).door.run(_is_signed_in, request)


def _is_signed_in(request: Request) -> bool:
    return bool(_session(request, console(request).store.administrator.get()))


def _session(request: Request, known: Credentials) -> str:
    """The ID of the session that the request belongs to; "" where it has none, or it has ended."""
    here = console(request)
    session = here.sessions.session(request, known.epoch)
    return "" if session and here.store.administrator.has_ended(session) else session


async def ask(request: Request) -> Response:
    """Lead the browser to the sign-in, and from there back to the page that it came from. A form
    that was sent is shown again, filled in: see kept_forms.py."""
    if is_fragment(request):
        return _ask_for_fragment(request)
    if request.method == "GET":
        return RedirectResponse(_asking(request.url.path, request.url.query), 303)
    here = console(request)
    if form := await kept_forms.carried(request):
        known = await here.door.run(here.store.administrator.get)
        page = kept_forms.page_of(request.url.path)
        return sign_in_form(request, known, page, kept=form, status=401)
    came_from = urlsplit(request.headers.get("referer", ""))
    return RedirectResponse(_asking(came_from.path or "/", came_from.query), 303)


def _ask_for_fragment(request: Request) -> Response:
    if request.method != "GET":
        # Leading the browser away would lose what was typed. A form is kept once it is sent.
        return render(request, "session_ended.html")
    came_from = urlsplit(request.headers.get("hx-current-url", ""))
    # The whole page changes to the sign-in, not only the part that htmx would replace.
    target = _asking(came_from.path or "/", came_from.query)
    return Response(status_code=401, headers={"HX-Redirect": target})


def _asking(path: str, query: str) -> str:
    """The URL of the sign-in that leads to the page at `path`."""
    wanted = _local(f"{path}?{query}" if query else path)
    return "/sign-in" + ("?" + urlencode({"next": wanted}) if wanted != "/" else "")


def _sign_in_page(request: Request) -> Response:
    here = console(request)
    known = here.store.administrator.get()
    wanted = _local(request.query_params.get("next", ""))
    if _session(request, known):
        return RedirectResponse(wanted, 303)
    return sign_in_form(request, known, wanted)


def sign_in_form(
    request: Request,
    known: Credentials,
    wanted: str,
    problem: str = "",
    *,
    wait: int = 0,
    kept: str = "",
    status: int = 200,
) -> Response:
    """The form; `kept` is another form that waits for the sign-in, URL-encoded."""
    status = 429 if wait else 401 if problem else status
    return render(
        request,
        "sign_in.html",
        status=status,
        headers={"Retry-After": str(wait)} if wait else None,
        next=wanted,
        kept=kept,
        problem=problem,
        has_password=bool(known.password_hash),
        token_file=console(request).settings.admin_token_file.name,
    )


def _sign_in(request: Request, form: FormData) -> Response:
    here = console(request)
    known = here.store.administrator.get()
    wanted = _local(text(form, "next"))
    secret = text(form, "password")
    kept = kept_forms.without_secrets(text(form, "kept"))
    device = here.sessions.device(request, known.epoch)
    source = f"device {device}" if device else source_of(address(request))
    is_token = credentials.is_token(secret, here.token)
    is_stranger = not device and not is_token
    if wait := here.attempts.wait(source):
        problem = TOO_MANY.format(wait)
        return sign_in_form(request, known, wanted, problem, wait=wait, kept=kept)
    if is_stranger and (wait := here.attempts.wait_for_all()):
        problem = _TOO_MANY_OF_ALL.format(wait)
        return sign_in_form(request, known, wanted, problem, wait=wait, kept=kept)
    if not credentials.matches(secret, known.password_hash, here.token):
        note(request, Action.SIGN_IN_FAILED)
        problem = "This is neither the password nor the administration token."
        return sign_in_form(request, known, wanted, problem, kept=kept)
    here.attempts.succeeded(source, counted_for_all=is_stranger)
    note(request, Action.SIGN_IN, {"with": "token" if is_token else "password"})
    # The new session replaces the one that this browser may have.
    _end_session(request, known)
    if kept and kept_forms.is_page(wanted):
        wanted += "?" + urlencode({"typed": here.kept.keep(wanted, kept)})
    return begin_session(here, known.epoch, wanted, device)


def begin_session(here: Console, epoch: int, target: str, device: str) -> Response:
    response = RedirectResponse(target, 303)
    here.sessions.begin(response, epoch, device)
    return response


def _local(target: str) -> str:
    """Where to go after the sign-in: `target` if it is a page of this console, else the first
    page."""
    is_local = target.startswith("/") and target.isprintable() and target.isascii()
    return target if is_local and not target.startswith("//") and "\\" not in target else "/"


def _sign_out(request: Request, _: FormData) -> Response:
    _end_session(request, console(request).store.administrator.get())
    note(request, Action.SIGN_OUT)
    return signed_out(request)


def _end_session(request: Request, known: Credentials) -> None:
    """End the session that the request belongs to, if there is one."""
    if session := _session(request, known):
        lifetime = timedelta(seconds=LIFETIME)
        console(request).store.administrator.end_session(session, lifetime)


def signed_out(request: Request) -> Response:
    response = RedirectResponse("/sign-in", 303)
    console(request).sessions.end(response)
    return response


PUBLIC = [
    Route("/sign-in", shown(_sign_in_page, to_strangers=True)),
    Route(
        "/sign-in", posted(_sign_in, by_strangers=True), methods=["POST"], max_body_size=MAX_BODY
    ),
]
"""Pages that need no session."""
ROUTES = [
    Route("/sign-out", posted(_sign_out), methods=["POST"]),
]
