"""The composition root: one worker, with its store, its key table and its listeners."""

import asyncio
import logging
import secrets
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from policyd import spool, tokens
from policyd.child import Child
from policyd.configuration import Address
from policyd.decision_log import DecisionLog
from policyd.errors import CannotListen, RevisionNotReached, SettingsError, StoreUnavailable
from policyd.http.app import HttpCheck
from policyd.http.listener import Listener, open_socket, tls_context
from policyd.key_table import KeyTable
from policyd.services.admin import AdminServicer
from policyd.services.envoy import AuthorizationServicer
from policyd.services.errors import ErrorInterceptor
from policyd.services.policy import PolicyServicer
from policyd.services.tokens import TokenInterceptor
from policyd.settings import ServerSettings
from policyd.spool import SpoolWriter
from policyd.store import Store, sqlite_file
from policyd.v1 import admin_pb2, admin_pb2_grpc, policy_pb2, policy_pb2_grpc

_log = logging.getLogger(__name__)

_POLL_EMBEDDED = 0.2
_POLL = 1.0
"""Seconds between two looks for changed keys. One at SQLite costs little, and it gives no hints."""
_BEAT = 2.0
"""Seconds between two signs of life for the store; a new revision is told at once."""
_POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_AUTHORIZATION = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """One worker: answers PolicyService and AdminService until it is stopped.

    `async with Server(settings) as server:` runs it; `server.grpc`, `server.admin` and
    `server.http` are where it listens. `shared` is for several workers on one port. Starting raises
    SettingsError, CannotListen or StoreUnavailable.
    """

    def __init__(self, settings: ServerSettings, *, shared: bool = False) -> None:
        self._settings = settings
        self._shared = shared
        self._store = Store(settings.database_url)
        self._keys = KeyTable(self._store.changes_since)
        self._listeners: list[_Listener] = []
        self._following: list[asyncio.Task[None]] = []
        self._spool: SpoolWriter | None = None
        self._office: Child | None = None
        self._id = secrets.token_hex(6)
        self.grpc = settings.grpc
        self.admin = settings.admin
        self.http = settings.http
        self._http: Listener | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        if not self._shared:
            await asyncio.to_thread(prepare, self._settings)
            # Before gRPC starts threads, which it would not like to see forked.
            self._office = back_office(self._settings)
            await self._office.start()
        await self._keys.refresh()
        self._spool = SpoolWriter(self._settings.spool, self._id, self._settings.spool_limit)
        credentials = _credentials(self._settings)
        policy = self._policy_listener()
        admin = self._admin_listener()
        self.grpc = await policy.start(self._settings.grpc, "--grpc", credentials)
        self.admin = await admin.start(self._settings.admin, "--admin", credentials)
        if self._settings.http is not None:
            self.http = await self._listen_http(self._settings.http)
        self._following = [
            asyncio.create_task(self._keys.follow(self._poll_interval())),
            asyncio.create_task(self._follow_hints()),
            asyncio.create_task(self._watch_staleness()),
            asyncio.create_task(self._beat()),
        ]
        if self._office is not None:
            self._following.append(asyncio.create_task(self._office.keep_running()))

    def _policy_listener(self) -> "_Listener":
        guards: list[grpc.aio.ServerInterceptor] = []
        if path := self._settings.caller_token_file:
            token = tokens.load(path, "--caller-token-file")
            guards.append(
                TokenInterceptor(token, f"ask policyd's operator for the one in {path.name}")
            )
        listener = self._listener((_POLICY, _AUTHORIZATION), guards)
        assert self._spool is not None
        log = DecisionLog(self._spool, drop_when_full=self._settings.drop_when_full)
        default = self._settings.default_mode
        self._policy = PolicyServicer(self._keys, default, self._id, log.append)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._policy, listener.server)
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(
            AuthorizationServicer(self._policy), listener.server
        )
        return listener

    def _admin_listener(self) -> "_Listener":
        path = self._settings.admin_token_file
        token = tokens.load(path, "--admin-token-file")
        guards = [TokenInterceptor(token, f"it stands in {path.name}, which policyd serve names")]
        listener = self._listener((_ADMIN,), guards)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(self._store), listener.server
        )
        return listener

    async def _listen_http(self, address: Address) -> Address:
        settings = self._settings
        tls = tls_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        path = settings.caller_token_file
        token = tokens.load(path, "--caller-token-file") if path else ""
        app = HttpCheck(
            self._policy.answer,
            token=token,
            max_body=settings.max_body,
            max_message=settings.max_message,
        )
        if not self._shared:
            check_free(address, "--http")
        try:
            listening = open_socket(address, shared=self._shared)
        except OSError:
            raise _not_free(address, "--http") from None
        port = listening.getsockname()[1]
        self._http = Listener(app, tls=tls, grace=settings.grace)
        await self._http.start(listening)
        return Address(address.host, port)

    def _listener(self, services: tuple[str, ...], guards: list[Any]) -> "_Listener":
        listener = _Listener(services, guards, self._settings.max_message, self._shared)
        self._listeners.append(listener)
        return listener

    async def _watch_staleness(self) -> None:
        fresh = True
        while True:
            await asyncio.sleep(min(1.0, self._settings.max_staleness / 4))
            was_fresh, fresh = fresh, self._keys.staleness() <= self._settings.max_staleness
            if fresh != was_fresh:
                _log.warning(
                    "health is now %s", "SERVING" if fresh else "NOT_SERVING: stale settings"
                )
                for listener in self._listeners:
                    await listener.tell(_SERVING if fresh else _NOT_SERVING)

    def _poll_interval(self) -> float:
        is_embedded = sqlite_file(self._settings.database_url) is not None
        return self._settings.poll_interval or (_POLL_EMBEDDED if is_embedded else _POLL)

    async def _follow_hints(self) -> None:
        async for _ in self._store.hints():
            self._keys.hint()

    async def _beat(self) -> None:
        """Tell the store that this worker runs, and at which revision."""
        host = socket.gethostname()
        while True:
            told = self._keys.revision
            with suppress(StoreUnavailable):
                await asyncio.to_thread(self._store.workers.beat, self._id, host, told)
            with suppress(RevisionNotReached):
                await self._keys.wait_for(told + 1, _BEAT)

    async def stop(self) -> None:
        """Stop at once to take new calls, and wait for those under way up to the grace period."""
        stopping = [one.stop(self._settings.grace) for one in self._listeners]
        if self._http is not None:
            stopping.append(self._http.stop())
        await asyncio.gather(*stopping)
        for task in self._following:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(StoreUnavailable):
            await asyncio.to_thread(self._store.workers.leave, self._id)
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self._office is not None:
            # Last, so that it ships all that was written.
            await self._office.stop()
        self._store.close()


class _Listener:
    """A gRPC server with `services` of ours, health and reflection."""

    def __init__(
        self, services: tuple[str, ...], guards: list[Any], max_message: int, shared: bool
    ) -> None:
        options = [
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", max_message),
            # Clients may ask every few seconds whether the connection still lives.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        self.server = grpc.aio.server(interceptors=[*guards, ErrorInterceptor()], options=options)
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
            raise _not_free(address, flag) from None
        await self.server.start()
        await self.tell(_SERVING)
        return Address(address.host, port)

    async def tell(self, status: int) -> None:
        """Report this health."""
        for service in self._services:
            await self._health.set(service, status)

    async def stop(self, grace: float) -> None:
        """Report NOT_SERVING, and wait for calls under way up to `grace` seconds."""
        await self._health.end_watches()
        await self.server.stop(grace)


class _Health(HealthServicer):
    """Ends the streams of Watch when the server stops: they would last as long as the grace."""

    def __init__(self) -> None:
        super().__init__()
        self._stopping = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802  # gRPC's name
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

    async def end_watches(self) -> None:
        """Tell whoever watches NOT_SERVING, and end."""
        await self.enter_graceful_shutdown()
        await asyncio.sleep(0)  # The watches wake, and send it.
        self._stopping.set()


def prepare(settings: ServerSettings) -> None:
    """What must be there before a worker starts: the tables, the administration token, the spool.

    Raises SettingsError or StoreUnavailable.
    """
    store = Store(settings.database_url)
    try:
        store.migrate()
        spool.prepare(settings.spool, store.identity())
    finally:
        store.close()
    tokens.load_or_create(settings.admin_token_file)


def back_office(settings: ServerSettings) -> Child:
    """The process that ships the log to the store: see back_office.py."""
    return Child("the back office", "policyd.back_office", settings)


def check_free(address: Address, flag: str) -> None:
    """Raises CannotListen where nobody can listen on `address`, or somebody does."""
    try:
        for family, kind, protocol, _, name in socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM
        ):
            # Without SO_REUSEPORT, so that it fails even where the other one would share.
            with socket.socket(family, kind, protocol) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(name)
    except OSError:
        raise _not_free(address, flag) from None


def reserve(address: Address, flag: str, held: ExitStack) -> Address:
    """Take the port for our own processes, so that no stranger shares it. Raises CannotListen."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    check_free(address, flag)
    shared = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((address.host, address.port))
    return Address(address.host, shared.getsockname()[1])


def _not_free(address: Address, flag: str) -> CannotListen:
    return CannotListen(
        f"{flag} {address} cannot be listened on: another program has the port, or it is no "
        f"address of this machine. Give {flag} another one; port 0 takes a free port"
    )


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
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
