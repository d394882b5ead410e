"""Account: the administrator's password, and the sessions that it opened."""

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.pages.sign_in import TOO_MANY, begin_session, signed_out
from policyd.console.security import credentials
from policyd.console.view.actor import note
from policyd.console.view.forms import text
from policyd.console.view.render import console, posted, render, shown
from policyd.keys.audit import Action


def _sign_out_everywhere(request: Request, _: FormData) -> Response:
    console(request).store.administrator.end_sessions()
    note(request, Action.SIGN_OUT, {"sessions": "all"})
    return signed_out(request)


def _account_page(request: Request) -> Response:
    return _account(request)


def _account(request: Request, problem: str = "", status: int = 422) -> Response:
    return render(
        request,
        "account.html",
        status=status if problem else 200,
        problem=problem,
        changed="changed" in request.query_params,
        has_password=bool(console(request).store.administrator.get().password_hash),
        min_length=credentials.MIN_LENGTH,
    )


def _change_password(request: Request, form: FormData) -> Response:
    here = console(request)
    known = here.store.administrator.get()
    # A source of its own: attempts of strangers do not delay the administrator, who is signed in.
    source = f"session {here.sessions.session(request, known.epoch)}"
    if wait := here.attempts.wait(source):
        return _account(request, TOO_MANY.format(wait), 429)
    if not credentials.matches(text(form, "current"), known.password_hash, here.token):
        return _account(
            request, "The current password is wrong. The administration token works, too."
        )
    here.attempts.succeeded(source, counted_for_all=False)
    password = text(form, "password")
    if problem := credentials.fault(password, text(form, "repeated")):
        return _account(request, problem)
    epoch = here.store.administrator.set_password(credentials.digest(password), known.epoch)
    if epoch is None:
        problem = "Another session has just changed the password. Sign in again."
        return _account(request, problem, 409)
    note(request, Action.PASSWORD_SET)
    device = here.sessions.device(request, known.epoch)
    return begin_session(here, epoch, "/account?changed", device)


ROUTES = [
    Route("/account", shown(_account_page)),
    Route("/account/password", posted(_change_password), methods=["POST"]),
    Route("/sign-out-everywhere", posted(_sign_out_everywhere), methods=["POST"]),
]
