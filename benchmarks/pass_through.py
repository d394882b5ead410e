"""`policyd-gateway serve` that asks no policyd: it allows every request at once."""

from functools import partial
from unittest.mock import patch

from gateway import cli
from gateway.server import Server
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest, EvaluateResponse


async def _allow(request: EvaluateRequest) -> EvaluateResponse:
    return EvaluateResponse(decision=DECISION_ALLOW, upstream_path=request.path)


if __name__ == "__main__":
    # Replaced here, so that all else is as in `policyd-gateway serve`.
    with patch("gateway.supervisor.Server", partial(Server, evaluate=_allow)):
        cli.main()
