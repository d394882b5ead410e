"""Use it: programs that send a request with a key that they read from the environment."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policyd.console.view.render import console, render, shown
from policyd.console.view.snippets import snippets


def _show(request: Request) -> Response:
    here = console(request)
    return render(
        request,
        "key_use.html",
        key=here.store.keys.get(request.path_params["key_id"]),
        now=here.store.time(),
        url=here.settings.console_gateway_url.rstrip("/"),
        snippets=snippets(here.settings.console_gateway_url),
    )


ROUTES = [Route("/keys/{key_id}/use", shown(_show))]
