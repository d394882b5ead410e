"""The actor of the console, as the audit trail names it, and its acts that change no key."""

import logging

from starlette.requests import Request

from policyd.console.security.client_address import client_address
from policyd.console.view.render import console
from policyd.errors import StoreUnavailable
from policyd.keys.audit import Action, Fields

_log = logging.getLogger(__name__)


def address(request: Request) -> str:
    """The address of the client, behind proxies that are trusted, too."""
    peer = request.client.host if request.client else ""
    forwarded = request.headers.getlist("x-forwarded-for")
    return client_address(peer, forwarded, console(request).proxies)


def actor(request: Request) -> str:
    """The actor of a request."""
    return f"console {address(request)}"


def note(request: Request, action: Action, after: Fields | None = None) -> None:
    """Note an act that changes no settings. Where the database takes no changes, as one that is
    read-only, the act goes on, and the server's log has it."""
    by = actor(request)
    try:
        console(request).store.audit.add(action, by, after)
    except StoreUnavailable as error:
        _log.warning("the audit trail lacks %s by %s: %s", action, by, error)
