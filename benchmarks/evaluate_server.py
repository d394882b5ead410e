"""`policyd serve` with a second service, whose methods decide nothing."""

from typing import Any
from unittest.mock import patch

import grpc
from google.protobuf.empty_pb2 import Empty

from policyd.cli import main
from policyd.decider import Decider
from policyd.descriptor.body_memory import Bodies
from policyd.server.server import Server
from policyd.v1.policy_pb2 import EvaluateRequest, EvaluateResponse

SERVICE = "policyd.benchmarks.Nothing"


class _Nothing:
    """A service that decides nothing, to measure the cost of a call."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._answer: EvaluateResponse | None = None

    async def empty(self, request: Empty, _: Any) -> Empty:
        """An empty response to an empty request."""
        return request

    async def same(self, request: EvaluateRequest, context: Any) -> EvaluateResponse:
        """Evaluate's messages: the response to the first request, again and again."""
        if self._answer is None:
            self._answer = await self._decider.answer(request, adapter="grpc", context=context)
        return self._answer


def _handler(nothing: _Nothing) -> grpc.GenericRpcHandler:
    unary = grpc.unary_unary_rpc_method_handler
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Empty": unary(nothing.empty, Empty.FromString, Empty.SerializeToString),
            "Same": unary(
                nothing.same, EvaluateRequest.FromString, EvaluateResponse.SerializeToString
            ),
        },
    )


class _Server(Server):
    def _policy_listener(self) -> Any:
        listener = super()._policy_listener()
        bodies = Bodies(2**29)
        decider = Decider(self._keys, self._defaults, "benchmark", lambda _: None, bodies)
        listener.server.add_generic_rpc_handlers((_handler(_Nothing(decider)),))
        return listener


if __name__ == "__main__":
    # Replaced here, so that all else is as in `policyd serve`.
    with patch("policyd.server.server.Server", _Server):
        main.main()
