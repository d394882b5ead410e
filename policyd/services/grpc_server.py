"""A gRPC listener: one port with policyd's services, health and reflection, and its bounds."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from policyd.command.address import Address, check_free
from policyd.command.listening import cannot_listen
from policyd.command.settings import read_file
from policyd.command.tls_files import check_authorities, check_pair
from policyd.services.errors import ErrorInterceptor, Note, unnoted
from policyd.services.waiting_calls import WaitingCalls
from policyd.settings import ServerSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIVENESS = "liveness"
"""The health service that says whether the process answers: one that does not should be
restarted."""
SETTINGS = "settings"
"""The health service that says whether policyd decides by fresh settings."""
DECISIONS = "decisions"
"""The health service that says whether requests get a decision, even while the worker drains.
Every other one says whether requests should be sent here."""

_STREAMS = 1000
"""Calls at once on a connection."""
_CALLS = 10_000
"""Calls at once on all connections together; further ones get RESOURCE_EXHAUSTED. Half of them may
wait for their message, or stream: see waiting_calls.py."""
_MAX_HEAD = 64 * 1024
"""Bytes of a call's metadata."""
_IDLE = 900.0
"""Seconds that a connection without a call is kept. This is so long that its age usually ends it
sooner: that leaves no line in the client's log, and this does."""
_STREAMED = 1.0
"""Seconds that calls have when the server stops, if they stream or have brought no message yet."""
_DEAD = 30.0
"""Seconds without a sign of life after which a connection is asked for one; it ends as many seconds
later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of a listener."""

    max_message: int
    """Bytes of a message."""
    connections: int
    """Number of connections."""
    handshake: float
    """Seconds until a connection has to speak HTTP/2, its TLS handshake included."""
    age: float
    """Seconds after which clients have to connect anew. gRPC varies it by a tenth."""


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
        # Clients may send a keepalive ping every few seconds. gRPC's clients also measure the
        # bandwidth with pings, and after a stall several may arrive together.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _milliseconds(_DEAD)),
        ("grpc.keepalive_timeout_ms", _milliseconds(_DEAD)),
        ("grpc.max_connection_idle_ms", _milliseconds(_IDLE)),
        # No grace is set, so that calls under way are finished: health's Watch may last.
        ("grpc.max_connection_age_ms", _milliseconds(bounds.age)),
    ]


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1000), 2**31 - 1)


class GrpcListener:
    """A gRPC server with `services` (their full names), health and reflection.

    `guards` are interceptors that come before the servicers. `note` gets the servicers' errors.
    `lasting` are the services whose streams last: see waiting_calls.py.
    """

    def __init__(
        self,
        services: tuple[str, ...],
        guards: list[Any],
        bounds: Bounds,
        shared: bool,
        note: Note = unnoted,
        lasting: tuple[str, ...] = (),
    ) -> None:
        self._waiting = WaitingCalls(_CALLS // 2, lasting)
        self.server = grpc.aio.server(
            interceptors=[self._waiting, *guards, ErrorInterceptor(note)],
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
        """Listen. Returns the address with the actual port. Raises CannotListen."""
        if not self._shared:
            check_free(address, flag)
        try:
            if credentials is None:
                port = self.server.add_insecure_port(str(address))
            else:
                port = self.server.add_secure_port(str(address), credentials)
        except RuntimeError:
            raise cannot_listen(address, flag) from None
        await self.server.start()
        return Address(address.host, port)

    async def tell(self, *, ready: bool, fresh: bool, decides: bool) -> None:
        """Report this health, also before start()."""
        for service in self._services:
            await self._health.set(service, SERVING if ready else NOT_SERVING)
        await self._health.set(LIVENESS, SERVING)
        await self._health.set(SETTINGS, SERVING if fresh else NOT_SERVING)
        await self._health.set(DECISIONS, SERVING if decides else NOT_SERVING)

    async def tell_of(self, name: str, status: int) -> None:
        """Report the health of a part that the other services do not depend on, under its name."""
        await self._health.set(name, status)

    async def stop(self, grace: float, told: int | None = NOT_SERVING) -> None:
        """Report the health `told`, and wait up to `grace` seconds for calls under way.

        Calls that stream, or have brought no message yet, have only _STREAMED seconds, because none
        of them is a decision under way.
        """
        await self._health.end_watches(told)
        stopping = asyncio.ensure_future(self.server.stop(grace))
        await asyncio.wait({stopping}, timeout=_STREAMED)
        self._waiting.end_all()
        await stopping

    def hurry(self) -> None:
        """Cut the calls under way, if it is stopping."""
        self._hurrying = asyncio.ensure_future(self.server.stop(0))


class _Health(HealthServicer):
    """Ends the streams of Watch when the server stops, as they would use up all of the grace."""

    def __init__(self) -> None:
        super().__init__()
        self._stopping = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        """See grpc.health.v1."""
        if request.service == LIVENESS:
            # A stopping server takes no requests, but must not be killed for that.
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
        """Report `told` to all watches, unless it is None, and end their streams."""
        if told is not None:
            await self.enter_graceful_shutdown()
        await asyncio.sleep(0)  # The watches wake up and send it.
        self._stopping.set()


def credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """The server's TLS credentials; None without TLS. Raises SettingsError, also for files with
    which gRPC would start, and fail each handshake."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    check_pair(settings.tls_cert, settings.tls_key)
    pair = (read_file(settings.tls_key), read_file(settings.tls_cert))
    authority = None
    if settings.tls_client_ca is not None:
        check_authorities(settings.tls_client_ca, "--tls-client-ca")
        authority = read_file(settings.tls_client_ca)
    return grpc.ssl_server_credentials([pair], authority, authority is not None)
