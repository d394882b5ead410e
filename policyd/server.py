"""The composition root: one worker, with its store, its key table and its listeners."""

import asyncio
import logging
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc

from policyd import spool, tokens
from policyd.addresses import check_free, not_free, steer
from policyd.bodies import Bodies
from policyd.child import Child, End
from policyd.configuration import Address
from policyd.decision_log import DecisionLog
from policyd.errors import RevisionNotReached, StoreUnavailable
from policyd.http.app import HttpCheck
from policyd.http.connections import Limits
from policyd.http.listener import Listener, open_socket, tls_context
from policyd.key_table import KeyTable
from policyd.private_files import warn_of_open_folders
from policyd.services.admin import AdminServicer
from policyd.services.envoy import AuthorizationServicer
from policyd.services.listener import NOT_SERVING, SERVING, Bounds, GrpcListener, credentials
from policyd.services.policy import PolicyServicer
from policyd.services.tokens import TokenInterceptor
from policyd.settings import SHIPPING, ServerSettings, dump_settings
from policyd.spool import SpoolWriter
from policyd.store import Store, sqlite_file
from policyd.v1 import admin_pb2, admin_pb2_grpc, policy_pb2, policy_pb2_grpc

_log = logging.getLogger(__name__)

_POLL_EMBEDDED = 0.2
_POLL = 1.0
"""Seconds between two looks for changed keys. One at SQLite costs little, and it gives no hints."""
_FLUSH = 5.0
"""Seconds between two times that refused keys, which are counted in memory, are written."""
_HANDSHAKE = 5.0
"""Seconds that a gRPC client has at most to begin. Where there are as many as may be, gRPC ends
none for a new one, so those that say nothing must end soon."""
_ADMINISTRATORS = 32
"""Connections to AdminService."""
_BEAT = 2.0
"""Seconds between two signs of life for the store; a new revision is told at once."""
_ENDING = "policyd is being stopped"
_POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_AUTHORIZATION = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


class Server:
    """One worker: answers PolicyService and AdminService until it is stopped.

    `async with Server(settings) as server:` runs it; `server.grpc`, `server.admin` and
    `server.http` are where it listens. `shared` is for several workers on one port, which may have
    one socket that is `listening` for HTTP. One that takes another's place has a `position`: see
    addresses.steer(). Starting raises SettingsError, CannotListen or StoreUnavailable.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        shared: bool = False,
        listening: socket.socket | None = None,
        position: int | None = None,
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._listening = listening
        self._position = position
        self._is_draining = self._is_replaced = False
        self._hurrying = asyncio.Event()
        self._store = Store(settings.database_url)
        self._keys = KeyTable(self._store.changes_since)
        self._listeners: list[GrpcListener] = []
        self._following: list[asyncio.Task[None]] = []
        self._spool: SpoolWriter | None = None
        self._log: DecisionLog | None = None
        self._office: Child | None = None
        self._id = secrets.token_hex(6)
        self.grpc = settings.grpc
        self.admin = settings.admin
        self.http = settings.http
        self._http: Listener | None = None
        self._app: HttpCheck | None = None

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
        drops = self._settings.drop_when_full
        self._log = DecisionLog(self._spool, self._id, drop_when_full=drops)
        tls = credentials(self._settings)
        policy = self._policy_listener()
        admin = self._admin_listener()
        self.grpc = await policy.start(self._settings.grpc, "--grpc", tls)
        self.admin = await admin.start(self._settings.admin, "--admin", tls)
        if self._settings.http is not None:
            self.http = await self._listen_http(self._settings.http)
        if self._position is not None:
            steer((self.grpc.port, self.admin.port), self._position)
        self._following = [
            asyncio.create_task(self._keys.follow(self._poll_interval())),
            asyncio.create_task(self._follow_hints()),
            asyncio.create_task(self._watch_staleness()),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._flush(self._log)),
        ]
        if self._office is not None:
            self._following.append(asyncio.create_task(self._office.keep_running()))

    def _policy_listener(self) -> GrpcListener:
        guards: list[grpc.aio.ServerInterceptor] = []
        if path := self._settings.caller_token_file:
            token = tokens.load(path, "--caller-token-file")
            guards.append(
                TokenInterceptor(token, f"ask policyd's operator for the one in {path.name}")
            )
        # Once, as it is told in the log where there is no room for so many.
        self._limits = _limits(self._settings)
        connections = self._limits.connections
        listener = self._listener((_POLICY, _AUTHORIZATION), guards, connections)
        assert self._log is not None
        default = self._settings.default_mode
        self._bodies = Bodies(self._settings.memory)
        self._policy = PolicyServicer(self._keys, default, self._id, self._log.append, self._bodies)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._policy, listener.server)
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(
            AuthorizationServicer(self._policy, self._bodies), listener.server
        )
        return listener

    def _admin_listener(self) -> GrpcListener:
        path = self._settings.admin_token_file
        token = tokens.load(path, "--admin-token-file")
        guards = [TokenInterceptor(token, f"it stands in {path.name}, which policyd serve names")]
        listener = self._listener((_ADMIN,), guards, _ADMINISTRATORS)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(self._store), listener.server
        )
        return listener

    async def _listen_http(self, address: Address) -> Address:
        settings = self._settings
        tls = tls_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        path = settings.caller_token_file
        token = tokens.load(path, "--caller-token-file") if path else ""
        self._app = HttpCheck(
            self._policy.answer,
            self._policy.knows,
            self._bodies,
            token=token,
            max_body=settings.max_body,
            max_message=settings.max_message,
            patience=settings.body_timeout,
            not_ready=self._not_ready,
        )
        listening = self._listening
        if listening is None:
            check_free(address, "--http")
            try:
                listening = open_socket(address)
            except OSError:
                raise not_free(address, "--http") from None
        port = listening.getsockname()[1]
        self._http = Listener(self._app, tls=tls, grace=settings.grace, limits=self._limits)
        await self._http.start(listening, shared=self._listening is not None)
        return Address(address.host, port)

    def _listener(
        self, services: tuple[str, ...], guards: list[Any], connections: int
    ) -> GrpcListener:
        settings = self._settings
        bounds = Bounds(
            max_message=settings.max_message,
            connections=connections,
            handshake=min(settings.head_timeout, _HANDSHAKE),
            age=settings.max_connection_age,
        )
        listener = GrpcListener(services, guards, bounds, self._shared)
        self._listeners.append(listener)
        return listener

    def _is_fresh(self) -> bool:
        return self._keys.staleness() <= self._settings.max_staleness

    async def _not_ready(self) -> str:
        return "" if self._is_fresh() else "the settings are stale: the database is away"

    async def _watch_staleness(self) -> None:
        fresh = True
        while True:
            await asyncio.sleep(min(1.0, self._settings.max_staleness / 4))
            was_fresh, fresh = fresh, self._is_fresh()
            if fresh != was_fresh and not self._is_draining:
                _log.warning(
                    "health is now %s", "SERVING" if fresh else "NOT_SERVING: stale settings"
                )
                await self._tell(SERVING if fresh else NOT_SERVING)

    async def _tell(self, health: int) -> None:
        for listener in self._listeners:
            await listener.tell(health)

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

    async def _flush(self, log: DecisionLog) -> None:
        """Write what was counted of refused keys."""
        while True:
            await asyncio.sleep(_FLUSH)
            log.flush()

    async def wind_down(self, end: End) -> None:
        """Answer still, for as long as `end` takes. Returns when it is to be stopped.

        One that is drained says that it is not ready; one that is replaced leaves that to the one
        that has taken its place.
        """
        if end is End.NOW:
            return
        seconds = self._settings.drain
        if self._http is not None:
            self._http.wind_down()
        if end is End.REPLACE:
            self._is_replaced, seconds = True, self._settings.handover
        else:
            _log.info("policyd says NOT_SERVING, and ends in %g s", seconds)
            self._is_draining = True
            if self._app is not None:
                self._app.end(_ENDING)
            await self._tell(NOT_SERVING)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurrying.wait()

    def hurry(self) -> None:
        """Wait for nothing any more: neither before it stops, nor for what is under way."""
        self._hurrying.set()
        for listener in self._listeners:
            listener.hurry()
        if self._http is not None:
            self._http.hurry()

    async def stop(self) -> None:
        """Stop at once to take new calls, and wait for those under way up to the grace period."""
        told = None if self._is_replaced else NOT_SERVING
        stopping = [one.stop(self._settings.grace, told) for one in self._listeners]
        if self._http is not None:
            stopping.append(self._http.stop())
        await asyncio.gather(*stopping)
        for task in self._following:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(StoreUnavailable):
            await asyncio.to_thread(self._store.workers.leave, self._id)
        if self._log is not None:
            self._log.flush()
            self._log = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self._office is not None:
            # Last, so that it ships all that was written.
            await self._office.stop()
        self._store.close()


def _limits(settings: ServerSettings) -> Limits:
    return Limits(
        connections=settings.connections,
        head=settings.head_timeout,
        body=settings.body_timeout,
        idle=settings.idle_timeout,
        write=settings.write_timeout,
    )


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
    file = sqlite_file(settings.database_url)
    kept = (
        settings.spool,
        settings.admin_token_file.parent,
        *([Path(os.path.realpath(file)).parent] if file else []),
    )
    warn_of_open_folders(kept)


def back_office(settings: ServerSettings) -> Child:
    """The process that ships the log to the store: see back_office.py."""
    return Child("the back office", "policyd.back_office", dump_settings(settings), SHIPPING)
