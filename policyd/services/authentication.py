"""Bearer tokens: which callers a listener lets in."""

import hmac
from typing import Any

import grpc

from policyd.errors import Unauthenticated
from policyd.services.errors import abort

_HEALTH = "/grpc.health.v1.Health/"  # Probes have no token, and health is no secret.


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets in who shows `authorization: Bearer TOKEN`, and everybody to the health service."""

    def __init__(self, token: str, hint: str) -> None:
        """`hint` tells a refused caller where to find the token."""
        self.let_in(token)
        self._hint = hint

    def let_in(self, token: str) -> None:
        """Let in those that show `token` from now on, and no others."""
        self._token = token.encode()

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        method = handler_call_details.method
        if method.startswith(_HEALTH) or self._is_right(handler_call_details.invocation_metadata):
            return await continuation(handler_call_details)
        # As a handler of streams it waits for no message, which may be large or never come.
        return grpc.stream_unary_rpc_method_handler(self._reject)

    def _is_right(self, metadata: Any) -> bool:
        given = [value for name, value in metadata or () if name == "authorization"]
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        is_bearer = scheme.lower() == "bearer"
        return hmac.compare_digest(token.strip().encode(), self._token) and is_bearer

    async def _reject(self, _: object, context: Any) -> None:
        await abort(context, Unauthenticated(f"the bearer token is missing or wrong: {self._hint}"))
