"""Serves a servicer of a test, as policyd would be asked: over gRPC, or over HTTP by Connect."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import uvicorn

from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server

KINDS = ("grpc", "http")
_MESSAGES = {
    "Evaluate": pb.EvaluateRequest,
    "BatchEvaluate": pb.BatchEvaluateRequest,
    "CheckKey": pb.CheckKeyRequest,
    "ReportOutcome": pb.ReportOutcomeRequest,
}
Stop = Callable[[], Awaitable[None]]


async def serve(
    servicer: PolicyServiceServicer, kind: str, host: str = "127.0.0.1", port: int = 0
) -> tuple[str, Stop]:
    """Serve `servicer`. Returns where a client at 127.0.0.1 asks it, and what stops it."""
    return await (_grpc if kind == "grpc" else _http)(servicer, host, port)


async def _grpc(servicer: PolicyServiceServicer, host: str, port: int) -> tuple[str, Stop]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_PolicyServiceServicer_to_server(servicer, server)
    taken = server.add_insecure_port(f"{host}:{port}")
    await server.start()

    async def stop() -> None:
        await server.stop(None)

    return f"127.0.0.1:{taken}", stop


async def _http(servicer: PolicyServiceServicer, host: str, port: int) -> tuple[str, Stop]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host.strip("[]"), port), family=family)
    config = uvicorn.Config(
        _App(servicer), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=0
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])

    async def stop() -> None:
        server.should_exit = True
        await server.shutdown(sockets=[listener])

    return f"http://127.0.0.1:{listener.getsockname()[1]}", stop


class _Aborted(Exception):
    """A call was ended with this error, as the Connect protocol has it."""

    def __init__(self, code: grpc.StatusCode, message: str, has_details: bool) -> None:
        super().__init__(message)
        name = "canceled" if code is grpc.StatusCode.CANCELLED else code.name.lower()
        told: dict[str, Any] = {"code": name, "message": message}
        if has_details:
            told["details"] = [{"type": "google.rpc.ErrorInfo", "value": ""}]
        self.body = json.dumps(told).encode()


class _Context:
    """What a servicer of these tests asks of its call."""

    async def abort(
        self, code: grpc.StatusCode, details: str, trailers: tuple[Any, ...] = ()
    ) -> NoReturn:
        raise _Aborted(code, details, bool(trailers))


class _App:
    """The servicer as an ASGI app."""

    def __init__(self, servicer: PolicyServiceServicer) -> None:
        self._servicer = servicer

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        name = scope["path"].rpartition("/")[2]
        if name not in _MESSAGES:
            state = {"healthz": b'{"state":"alive"}'}.get(name, b'{"state":"deciding"}')
            await _send(send, 200, b"application/json", state)
            return
        answering: Any = getattr(self._servicer, name)
        try:
            asked: Any = _MESSAGES[name]
            found = await answering(asked.FromString(await _read(receive)), _Context())
        except _Aborted as aborted:
            await _send(send, 500, b"application/json", aborted.body)
        except asyncio.CancelledError:
            await _send(send, 503, b"text/plain", b"it is stopped")
        else:
            await _send(send, 200, b"application/proto", found.SerializeToString())


async def _read(receive: Any) -> bytes:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


async def _send(send: Any, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
