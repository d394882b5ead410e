"""A gRPC listener: one port with services of ours, health and reflection."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from policyd.command.address import Address, check_free, not_free
from policyd.errors import SettingsError
from policyd.services.errors import ErrorInterceptor
from policyd.services.waiting import Waiting
from policyd.settings import ServerSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIVENESS = "liveness"
"""The health service that says that the process answers: one that does not is to be restarted."""
SETTINGS = "settings"
"""The health service that says whether decisions are made by fresh settings. Every other one is
readiness: whether requests should be sent here."""

_STREAMS = 1000
"""Calls at once on a connection."""
_CALLS = 10_000
"""Calls at once on all connections together; further ones get RESOURCE_EXHAUSTED. Half of them may
wait for their message or stream: see waiting.py."""
_MAX_HEAD = 64 * 1024
"""Bytes of a call's metadata."""
_IDLE = 900.0
"""Seconds that a connection without a call is kept. Mostly its age ends it before, which puts no
line into its client's log, as this would."""
_STREAMED = 1.0
"""Seconds that calls which stream, or have brought no message yet, have at the end."""
_DEAD = 30.0
"""Seconds after which a connection without a sign of life is asked for one, and then ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What bounds a listener's clients: bytes, connections and seconds."""

    max_message: int
    connections: int
    handshake: float
    """Seconds until a connection speaks HTTP/2, TLS included."""
    age: float
    """Seconds after which a connection is to be made anew. gRPC adds or takes a tenth."""


def _options(bounds: Bounds, shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", bounds.max_message),
        ("grpc.max_allowed_incoming_connections", bounds.connections),
        ("grpc.server_handshake_timeout_ms", _milliseconds(bounds.handshake)),
        ("grpc.http2.settings_timeout", _milliseconds(bounds.handshake)),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_metadata_size", _MAX_HEAD),
        ("grpc.absolute_max_metadata_size", _MAX_HEAD),
        # Clients may ask every few seconds whether the connection still lives. gRPC's own measure
        # the bandwidth with pings, too, of which a few may arrive together after a stall.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _milliseconds(_DEAD)),
        ("grpc.keepalive_timeout_ms", _milliseconds(_DEAD)),
        ("grpc.max_connection_idle_ms", _milliseconds(_IDLE)),
        # Calls under way, and those that cross the notice, are finished: health's Watch may last.
        ("grpc.max_connection_age_ms", _milliseconds(bounds.age)),
    ]


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1000), 2**31 - 1)


class GrpcListener:
    """A gRPC server with `services` of ours, health and reflection."""

    def __init__(
        self, services: tuple[str, ...], guards: list[Any], bounds: Bounds, shared: bool
    ) -> None:
        self._waiting = Waiting(_CALLS // 2)
        self.server = grpc.aio.server(
            interceptors=[self._waiting, *guards, ErrorInterceptor()],
            options=_options(bounds, shared),
            maximum_concurrent_rpcs=_CALLS,
        )
        self._shared = shared
        self._health = _Health()
        self._services = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        names = (*services, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    async def start(
        self, address: Address, flag: str, credentials: grpc.ServerCredentials | None
    ) -> Address:
        """Listen. Returns the address with the port that it took. Raises CannotListen."""
        if not self._shared:
            check_free(address, flag)
        try:
            if credentials is None:
                port = self.server.add_insecure_port(str(address))
            else:
                port = self.server.add_secure_port(str(address), credentials)
        except RuntimeError:
            raise not_free(address, flag) from None
        await self.server.start()
        return Address(address.host, port)

    async def tell(self, *, ready: bool, fresh: bool) -> None:
        """Report this health: before start(), too."""
        for service in self._services:
            await self._health.set(service, SERVING if ready else NOT_SERVING)
        await self._health.set(LIVENESS, SERVING)
        await self._health.set(SETTINGS, SERVING if fresh else NOT_SERVING)

    async def tell_of(self, name: str, status: int) -> None:
        """Report the health of something that the rest does not depend on, under its own name."""
        await self._health.set(name, status)

    async def stop(self, grace: float, told: int | None = NOT_SERVING) -> None:
        """Report `told`, and wait for calls under way up to `grace` seconds.

        Those that stream, or have brought no message yet, have _STREAMED of them: none of them is
        a decision under way.
        """
        await self._health.end_watches(told)
        stopping = asyncio.ensure_future(self.server.stop(grace))
        await asyncio.wait({stopping}, timeout=_STREAMED)
        self._waiting.end_all()
        await stopping

    def hurry(self) -> None:
        """Cut the calls under way, where it is being stopped."""
        self._hurrying = asyncio.ensure_future(self.server.stop(0))


class _Health(HealthServicer):
    """Ends the streams of Watch when the server stops: they would last as long as the grace."""

    def __init__(self) -> None:
        super().__init__()
        self._stopping = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        """See grpc.health.v1."""
        if request.service == LIVENESS:
            # One that is being stopped takes no requests, and is not to be killed for that.
            return health_pb2.HealthCheckResponse(status=SERVING)
        return await super().Check(request, context)

    async def List(self, request: Any, context: Any) -> Any:
        """See grpc.health.v1."""
        messages: Any = health_pb2  # Its types are older than this method.
        known: Any = self._server_status  # type: ignore[attr-defined]  # theirs, too
        check = messages.HealthCheckResponse
        return messages.HealthListResponse(
            statuses={name: check(status=status) for name, status in known.items()}
        )

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:  # gRPC's name
        """See grpc.health.v1."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([watching, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def end_watches(self, told: int | None) -> None:
        """Tell all that watch `told`, unless it is None, and end their streams."""
        if told is not None:
            await self.enter_graceful_shutdown()
        await asyncio.sleep(0)  # The watches wake, and send it.
        self._stopping.set()


def credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """What TLS needs, None without TLS. Raises SettingsError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    pair = (_read(settings.tls_key, "--tls-key"), _read(settings.tls_cert, "--tls-cert"))
    authority = None
    if settings.tls_client_ca is not None:
        authority = _read(settings.tls_client_ca, "--tls-client-ca")
    return grpc.ssl_server_credentials([pair], authority, authority is not None)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{flag} {path} cannot be read: {error.strerror}") from None
