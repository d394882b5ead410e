"""Where an end user can stand in a request, and the endpoints that have such places."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from policyd.engine.states import UserState

USER = "user"
SAFETY_IDENTIFIER = "safety_identifier"
METADATA_USER_ID = "metadata.user_id"
"""Anthropic's place: `user_id` in the object `metadata`."""
END_USER_ID = "user_security_context.end_user_id"
"""Azure's place: `end_user_id` in the object `user_security_context`."""
IDENTIFIERS = (USER, SAFETY_IDENTIFIER)
"""The places in which an end user may stand where an API key sets no places."""
BODY_PLACES = (USER, SAFETY_IDENTIFIER, METADATA_USER_ID, END_USER_ID)
"""The places of a body in which an end user can stand: its fields, and fields of its objects."""
HEADER_PLACE = "header:"
"""What places that are headers begin with. The header's name follows, in lower case."""
SAFETY_HEADER = "openai-safety-identifier"
"""The header in which some endpoints take what is safety_identifier elsewhere."""
MAX_PLACES = 8
"""Places that an API key can accept."""
_HEADER_PLACE = re.compile(r"header:[a-z0-9-]{1,64}")


def is_place(name: str) -> bool:
    """Whether `name` is that of a place in which an end user can stand."""
    return name in BODY_PLACES or _HEADER_PLACE.fullmatch(name) is not None


def accept_problem(accept: Iterable[str]) -> str:
    """Why an API key cannot accept these places, and what it can accept; "" where it can."""
    places = tuple(accept)
    if not places:
        return f"accept is empty: name at least one of {_PLACES}"
    if unknown := [one for one in places if not is_place(one)]:
        return f"accept names {unknown[0][:80]!r}, in which no end user can stand: name {_PLACES}"
    if repeated := next((one for one in places if places.count(one) > 1), ""):
        return f"accept names {repeated} more than once: name it once"
    if len(places) > MAX_PLACES:
        return f"accept names {len(places)} places: name at most {MAX_PLACES}"
    return ""


_PLACES = f"{', '.join(BODY_PLACES)} and header:NAME (a header's name in lower case)"


def can_accept(accept: Iterable[str]) -> bool:
    """Whether an API key can accept these places; accept_problem() says why it cannot."""
    return not accept_problem(accept)


MAX_SAFETY_IDENTIFIER = 128
"""Characters of a safety_identifier: OpenAI's limit."""


class Endpoint(NamedTuple):
    """An endpoint whose requests policies judge."""

    operation: str
    """What it does, in the log's words: chat_completion, embedding …"""
    identifiers: tuple[str, ...]
    """The places of BODY_PLACES that it has. Places that are headers count on every endpoint."""
    takes_form: bool = False
    """Whether its body may be multipart/form-data."""
    takes_sdp: bool = False
    """Whether its body may be application/sdp, which has no place for an end user."""
    takes_model: bool = True
    """Whether its requests name a model, in a field of their own or in the path."""
    safety_header: bool = False
    """Whether SAFETY_HEADER is a place of its safety_identifier, beside the body."""
    safety_in_session: bool = False
    """Whether its safety_identifier stands in the body's object `session`."""
    only_for: str = ""
    """The place that a key must accept for the endpoint to be in scope. Empty: it always is."""

    @property
    def further(self) -> tuple[str, ...]:
        """Its places except IDENTIFIERS."""
        return _further(self.identifiers)

    def is_for(self, accept: Iterable[str]) -> bool:
        """Whether it is in scope for a key that accepts these places."""
        return not self.only_for or self.only_for in accept

    def places(self, accept: Iterable[str]) -> tuple[str, ...]:
        """Those of `accept` in which an end user can stand here."""
        return tuple(
            one for one in accept if one in self.identifiers or one.startswith(HEADER_PLACE)
        )


@lru_cache(maxsize=64)
def _further(identifiers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in identifiers if one not in IDENTIFIERS)


class Target(NamedTuple):
    """What a request's method and path ask for."""

    in_scope: bool
    """Whether it is in scope for some keys at least: `endpoint.is_for` says for which."""
    endpoint: Endpoint | None = None
    """None where it is out of scope, or where neither method nor path is known."""
    path: str = ""
    """The canonical path, percent-encoded. Empty if out of scope, not known or ambiguous."""
    is_ambiguous: bool = False
    """Whether servers may read its path as different endpoints, so that it must not go upstream."""
    model: str = ""
    """The model, deployment or engine that its path names. Empty: none."""
    has_unclear_model: bool = False
    """Whether a server may read another model in its path."""

    def is_in_scope_for(self, accept: Iterable[str]) -> bool:
        """Whether it is in scope for a key that accepts these places."""
        endpoint = self.endpoint
        if endpoint is None or not endpoint.only_for:  # Nearly always so, and this saves a call.
            return self.in_scope
        return self.in_scope and endpoint.is_for(accept)


class EndUser(NamedTuple):
    """What is known about the end user in one place of a request."""

    place: str
    """user, safety_identifier, metadata.user_id, user_security_context.end_user_id, header:NAME."""
    state: UserState
    value: str | None = None
    """The first 1,024 characters of a string that is not blank. None: there is none, or the caller
    did not give it."""
    further_values: tuple[str, ...] = ()
    """The other such strings, where several stand there. The state is that of the worst."""


NO_END_USER = EndUser("", UserState.ABSENT)
"""The end user of a request that has no place for one."""
