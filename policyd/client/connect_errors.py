"""What an HTTP response that is no answer means: it is policyd's error, in the form of the Connect
protocol, or it comes from something else.

A proxy that reaches no policyd says 502, 503 or 504, and that is an outage. Whatever else answers
in policyd's place, such as a web server at a wrong port, is no outage: it lets no request pass.
"""

import json
from typing import Any

import grpc

from policyd.client.http_pool import Reply
from policyd.client.statuses import TABLE, Failed, Meaning

_Code = grpc.StatusCode
_CODES = {code.name.lower(): code for code in _Code} | {"canceled": _Code.CANCELLED}
"""gRPC's codes, by Connect's names for them."""
AWAY = frozenset({502, 503, 504})
"""The statuses by which a proxy says that it reaches no policyd, or policyd's /decisionsz that it
does not decide."""
_LONGEST = 1000
"""Characters of a message that are kept, as it is logged."""
_INFO = "google.rpc.ErrorInfo"
"""The type of a detail that neither balancers nor proxies send."""


def reported_failure(reply: Reply) -> Failed | None:
    """The failure that policyd reports; None where the response is not policyd's."""
    told = _error(reply)
    if told is None:
        return None
    code = _CODES[told["code"]]
    meaning = TABLE[code]
    if meaning is Meaning.NOT_REACHED and _has_info(told):
        meaning = Meaning.PASSING
    return Failed(code, _message(told), meaning)


def stranger(address: str, reply: Reply) -> Failed:
    """The failure of a call to `address` that something else answered."""
    said = f"{address} answers HTTP status {reply.status}"
    if reply.status in AWAY:
        return Failed(_Code.UNAVAILABLE, said, Meaning.NOT_REACHED)
    return Failed(
        _Code.UNKNOWN,
        f"{said} ({reply.kind[:_LONGEST]}), as no policyd does: ask at the address of its --http",
        Meaning.ELSEWHERE,
    )


def _error(reply: Reply) -> dict[str, Any] | None:
    """The error in a response; None where it holds none that Connect defines."""
    if reply.status == 200 or reply.kind != "application/json":
        return None
    try:
        told = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(told, dict) and isinstance(told.get("code"), str)
    return told if is_one and told["code"] in _CODES and told["code"] != "ok" else None


def _message(told: dict[str, Any]) -> str:
    """What an error says, as text that can be encoded: JSON may hold half a surrogate pair."""
    message = told.get("message")
    return (
        message[:_LONGEST].encode("utf-8", "replace").decode() if isinstance(message, str) else ""
    )


def _has_info(told: dict[str, Any]) -> bool:
    details = told.get("details")
    return isinstance(details, list) and any(
        isinstance(one, dict) and one.get("type") == _INFO for one in details
    )
