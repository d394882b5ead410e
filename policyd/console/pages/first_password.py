"""First password: the administrator sets it by the one-time link."""

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.pages.sign_in import MAX_BODY, begin_session, sign_in_form
from policyd.console.security import credentials
from policyd.console.view.actor import note
from policyd.console.view.forms import text
from policyd.console.view.render import console, posted, render, shown
from policyd.keys.audit import Action

_LINK_USED = (
    "This link is no longer good: it was used already, or is older than a day. Sign in below, or "
    "restart policyd for a new link if no password was set yet."
)


def _link_page(request: Request) -> Response:
    here = console(request)
    code = request.query_params.get("code", "")
    known = here.store.administrator.get()
    if known.password_hash or not here.sessions.is_link_code(code, known.epoch):
        return sign_in_form(request, known, "/", _LINK_USED)
    return _link_form(request, code)


def _link_form(request: Request, code: str, problem: str = "") -> Response:
    return render(
        request,
        "first_password.html",
        status=422 if problem else 200,
        code=code,
        problem=problem,
        min_length=credentials.MIN_LENGTH,
    )


def _set_first_password(request: Request, form: FormData) -> Response:
    here = console(request)
    code = text(form, "code")
    known = here.store.administrator.get()
    if known.password_hash or not here.sessions.is_link_code(code, known.epoch):
        return sign_in_form(request, known, "/", _LINK_USED)
    password = text(form, "password")
    if problem := credentials.fault(password, text(form, "repeated")):
        return _link_form(request, code, problem)
    epoch = here.store.administrator.set_password(credentials.digest(password), known.epoch)
    if epoch is None:
        return sign_in_form(request, here.store.administrator.get(), "/", _LINK_USED)
    note(request, Action.PASSWORD_SET, {"with": "one-time link"})
    return begin_session(here, epoch, "/", here.sessions.device(request, known.epoch))


PUBLIC = [
    Route("/first-password", shown(_link_page, to_strangers=True)),
    Route(
        "/first-password",
        posted(_set_first_password, by_strangers=True),
        methods=["POST"],
        max_body_size=MAX_BODY,
    ),
]
"""Pages that need no session."""
