"""Envoy's external authorization over gRPC by a server that allows every request and decides
nothing: the least that a check by gRPC for Python costs."""

import asyncio
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, OkHttpResponse

from policyd.command.process import run

SERVICE = "envoy.service.auth.v3.Authorization"
READY = "ready: "
_ALLOWED = CheckResponse(ok_response=OkHttpResponse())


async def _check(_: CheckRequest, __: Any) -> CheckResponse:
    return _ALLOWED


async def _serve() -> None:
    unary = grpc.unary_unary_rpc_method_handler(
        _check, CheckRequest.FromString, CheckResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Check": unary}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{READY}127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(_serve())
