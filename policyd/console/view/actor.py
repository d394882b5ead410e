"""The actor of a console's request, as the audit trail names it, and acts that change no key."""

import logging

from starlette.requests import Request

from policyd.console.security.client_address import client_address
from policyd.console.view.render import console
from policyd.errors import StoreUnavailable
from policyd.keys.audit import Action, Fields

_log = logging.getLogger(__name__)


def address(request: Request) -> str:
    """The address of the client, also behind trusted proxies."""
    peer = request.client.host if request.client else ""
    forwarded = request.headers.getlist("x-forwarded-for")
    return client_address(peer, forwarded, console(request).proxies)


def actor(request: Request) -> str:
    """The actor of a request."""
    return f"console {address(request)}"


def note(request: Request, action: Action, after: Fields | None = None) -> None:
    """Record an act that changes no settings in the audit trail. Where the database takes no
    changes, for example as it is read-only, the act goes on, and the server's log names it."""
    by = actor(request)
    try:
        console(request).store.audit.add(action, by, after)
    except StoreUnavailable as error:
        _log.warning("the audit trail lacks %s by %s: %s", action, by, error)
