"""Decision -> the exact HTTP response of a denial: docs/contract.md, section 4.

The other answers that all adapters share are here, too: to no decision, to a WebSocket, and to a
path that servers read differently.
"""

import json
from dataclasses import replace
from functools import cache

from policyd.engine.model import Denial
from policyd.engine.states import Credential, UserState

HEADERS = (
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "OPTIONS,POST,GET"),
    ("Content-Type", "application/json"),
)
PREFIX = "Usage Panda: "

_UNREADABLE = {
    UserState.NOT_JSON: (
        400,
        "The request body is not well-formed JSON, or its Content-Type header lets a server read "
        "it as something else, such as a form or another charset, so its {subject} cannot be "
        "checked. Send one JSON object, encoded in UTF-8 without a byte order mark, with the "
        "header Content-Type: application/json",
    ),
    UserState.NOT_OBJECT: (
        400,
        "The request body is JSON but not an object, so it has no {subject}. Send one JSON object",
    ),
    UserState.TOO_COMPLEX: (
        400,
        "The request body is nested more than 500 levels deep, or has too many strings, arrays and "
        "objects for its {subject} to be checked. Send a simpler JSON object",
    ),
    UserState.BAD_FORM: (
        400,
        "The request body is not a well-formed multipart form that every server reads alike, so "
        "its {subject} cannot be checked. Send a complete form, with the header Content-Type: "
        "multipart/form-data; boundary=... and each part's name in plain text",
    ),
    UserState.BAD_ENCODING: (
        400,
        "The request body does not decompress as its Content-Encoding says, or can be read without "
        "that, so its {subject} cannot be checked. Send the complete compressed data as one "
        "stream (deflate is zlib's format), or send the body uncompressed",
    ),
    UserState.UNSUPPORTED_ENCODING: (
        415,
        "The request body's Content-Encoding is not known here, so its {subject} cannot be "
        "checked. "
        "Use gzip, deflate, br or zstd, or send the body uncompressed",
    ),
    UserState.TOO_LARGE: (
        413,
        "The request body is too large for its {subject} to be checked. "
        "Send a smaller one, or ask the gateway's operator to raise its limit",
    ),
}
TOO_LARGE = 413
"""The status of a denial for a body over the bound."""
UNREADABLE = frozenset(status for status, _ in _UNREADABLE.values())
"""The statuses of denials for bodies that cannot be read."""
_KEY_DENIED = {
    Credential.MISSING: ("No API key was given. Send yours in the x-usagepanda-api-key header"),
    Credential.CONFLICTING: (
        "Two different API keys were given. Send one x-usagepanda-api-key header"
    ),
    # Malformed, unknown and revoked keys get the same text, lest a client learn which keys exist.
    Credential.GIVEN: (
        "The API key in the x-usagepanda-api-key header is not valid here. "
        "Check that it is complete and has not been revoked, or create a new one"
    ),
}


def render(status: int, messages: tuple[str, ...], error_type: str) -> Denial:
    """The response with `status` for the violations that `messages` name.

    Every error of the project's own is rendered here, so that all have OpenAI's shape.
    """
    error = {
        "message": PREFIX + ", ".join(messages),
        "type": error_type,
        "param": None,
        "code": None,
    }
    # In ASCII, as a message may quote what a caller sent, and a lone surrogate has no UTF-8.
    body = json.dumps({"error": error}, separators=(",", ":"))
    return Denial(status, HEADERS, body.encode())


UNDECIDED = render(
    503,
    (
        "The policy service gave no decision in time, so the request was not sent upstream. "
        "Try again; if it lasts, ask the gateway's operator whether policyd runs and can be "
        "reached",
    ),
    "server_error",
)
"""The response where policyd gave no decision, without the Retry-After that goes with it:
docs/contract.md, section 5."""
NO_DECISION = replace(UNDECIDED, headers=(*HEADERS, ("Retry-After", "1")))
"""The response where policyd gave no decision."""

WEBSOCKET = render(
    426,
    (
        "This gateway does not pass WebSocket connections on, because no policy can see into them. "
        "Send the request over HTTP, with stream: true for a stream",
    ),
    "invalid_request",
)
"""The response to a request that asks for a WebSocket. After a 426, clients that can ask over HTTP
too do so at once; after a 5xx they first try again and again."""
WEBSOCKET_HEADERS = (*WEBSOCKET.headers, ("Upgrade", "HTTP/1.1"), ("Connection", "Upgrade"))
"""WEBSOCKET's headers where no proxy stands between: a 426 names the protocol that is spoken on
this connection (RFC 9110, section 15.5.22)."""

AMBIGUOUS_PATH = render(
    400,
    (
        "Servers may read the request's path in more than one way, so it cannot be told which "
        "endpoint it asks for. Send the path in its plain form, such as /v1/chat/completions, "
        "without dot segments and percent-encoded at most once",
    ),
    "invalid_request",
)
"""The response to a request whose path must not go upstream: docs/contract.md, section 2."""


def for_violations(messages: tuple[str, ...]) -> Denial:
    """The response to a request that violates policies."""
    return render(422, messages, "invalid_request")


@cache
def for_unreadable(state: UserState, subjects: tuple[str, ...]) -> Denial:
    """The response to a request whose body cannot be read, so that `subjects` are not known."""
    status, message = _UNREADABLE[state]
    *some, last = dict.fromkeys(subjects)
    subject = f"{', '.join(some)} and {last}" if some else last
    return render(status, (message.format(subject=subject),), "invalid_request")


@cache
def for_credential(credential: Credential) -> Denial:
    """The response to a request with no API key in force; `credential` is how it names one."""
    return render(403, (_KEY_DENIED[credential],), "access_denied")
