"""Authentication of gRPC callers by bearer token.

A listener that has a token serves only calls with `authorization: Bearer TOKEN`. The check comes
before the call's message is read, so that a caller without the token cannot make the server
hold anything; and it compares in constant time, so that the time of an answer reveals nothing about
the token. Only the health service needs no token: probes have none, and health is no secret. A
service of the listener may have a token of its own: then no other token opens it.
"""

import hmac
from typing import Any

import grpc

from policyd.errors import Unauthenticated
from policyd.services.errors import Note, abort, unnoted

_HEALTH = "/grpc.health.v1.Health/"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Serves callers that send `authorization: Bearer TOKEN`; the health service serves all."""

    def __init__(
        self,
        token: str,
        hint: str,
        note: Note = unnoted,
        *,
        only: str = "",
        but: tuple[str, ...] = (),
    ) -> None:
        """`hint` ends the error for other callers: it says where to find the token. `note` gets
        each such error. The token opens the service `only`, or all services `but` those that have
        a token of their own."""
        self.accept(token)
        self._only = f"/{only}/" if only else "/"
        self._open = (_HEALTH, *(f"/{service}/" for service in but))
        self._note = note
        self._hint = hint

    def accept(self, token: str) -> None:
        """Accept `token` from now on, in place of the one before."""
        self._token = token.encode()

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        method = handler_call_details.method
        is_guarded = method.startswith(self._only) and not method.startswith(self._open)
        if not is_guarded or self._is_right(handler_call_details.invocation_metadata):
            return await continuation(handler_call_details)
        # A handler of streams is called before the message, which may be large or never arrive.
        return grpc.stream_unary_rpc_method_handler(self._reject)

    def _is_right(self, metadata: Any) -> bool:
        given = [value for name, value in metadata or () if name == "authorization"]
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        is_bearer = scheme.lower() == "bearer"
        return hmac.compare_digest(token.strip().encode(), self._token) and is_bearer

    async def _reject(self, _: object, context: Any) -> None:
        error = Unauthenticated(f"the bearer token is missing or wrong: {self._hint}")
        self._note(error)
        await abort(context, error)
