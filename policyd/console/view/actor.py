"""Who uses the console, as the audit trail names them: by the address of the client."""

from starlette.requests import Request

from policyd.console.security.client_address import client_address
from policyd.console.view.render import console


def address(request: Request) -> str:
    """The address of the client, behind proxies too."""
    peer = request.client.host if request.client else ""
    forwarded = request.headers.getlist("x-forwarded-for")
    return client_address(peer, forwarded, console(request).proxies)


def actor(request: Request) -> str:
    """What the audit trail calls the administrator."""
    return f"console {address(request)}"
