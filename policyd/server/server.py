"""The composition root: one worker, with its store, its key table and its listeners."""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc

from policyd.asgi.connections import Limits
from policyd.command.address import Address, check_free, not_free, open_socket, steer
from policyd.command.child import Child, End
from policyd.command.threads import StoreThreads
from policyd.decision_log.spool import SpoolWriter
from policyd.decision_log.writer import DecisionLog
from policyd.descriptor.body_memory import Bodies
from policyd.errors import NoRoom, RevisionNotReached, StoreBusy, StoreUnavailable
from policyd.keys import tokens
from policyd.keys.key_table import KeyTable
from policyd.server.following import Following
from policyd.server.opening import OpenedStore
from policyd.server.preparation import background_worker, keep_background_worker, preparing
from policyd.server.worker_clock import WorkerClock
from policyd.services.admin import AdminServicer
from policyd.services.authentication import TokenInterceptor
from policyd.services.ext_authz import AuthorizationServicer
from policyd.services.grpc_server import NOT_SERVING, SERVING, Bounds, GrpcListener, credentials
from policyd.services.policy import PolicyServicer
from policyd.settings import ServerSettings
from policyd.store import Store
from policyd.v1 import admin_pb2, admin_pb2_grpc, policy_pb2, policy_pb2_grpc

if TYPE_CHECKING:
    from policyd.asgi.listener import Listener
    from policyd.http.app import HttpCheck

_log = logging.getLogger(__name__)

_FLUSH = 5.0
"""Seconds between two times that refused keys, which are counted in memory, are written."""
_HANDSHAKE = 5.0
"""Seconds that a gRPC client has at most to begin. Where there are as many as may be, gRPC ends
none for a new one, so those that say nothing must end soon."""
_ADMINISTRATORS = 32
"""Connections to AdminService."""
_ROOM = 1.0
"""Seconds between two looks at whether a full disk has room for the administration token."""
_BEAT = 2.0
"""Seconds between two signs of life for the store; a new revision is told at once."""
_LEAVE = 1.0
"""Seconds to tell the store that this worker ends: else it finds out, a little later."""
_SOON = 1.0
"""Seconds that a start waits for the database's time."""
_CLOCK = "policyd.clock"
"""The name under which gRPC's health tells of the worker's clock. A wrong one takes no worker out,
so the other names do not tell of it."""
_ENDING = "policyd is being stopped"
_POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_AUTHORIZATION = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


class Server:
    """One worker: answers PolicyService and AdminService until it is stopped.

    `async with Server(settings) as server:` runs it; `server.grpc`, `server.admin` and
    `server.http` are where it listens. `shared` is for several workers on one port, which may have
    one socket that is `listening` for HTTP. One that takes another's place has a `position`: see
    addresses.steer(). It starts without a database that is away, and where it finds no snapshot of
    the settings either, answers that it cannot decide yet. Starting raises SettingsError,
    CannotListen, or StoreUnusable; but of shared workers only one that `is_first` raises that, and
    others wait for the database to be put right.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        shared: bool = False,
        is_first: bool = False,
        listening: socket.socket | None = None,
        position: int | None = None,
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._store = Store(settings.database_url, settings.database_timeout)
        opened = OpenedStore(self._store, settings)
        self._keys = KeyTable(opened.changes_since, settings.database_timeout)
        self._beating = StoreThreads("signs of life", settings.database_timeout)
        self._following_settings = Following(
            self._keys, opened, settings, ends=is_first or not shared
        )
        self._listening = listening
        self._position = position
        self._is_draining = self._is_replaced = False
        self._hurrying = asyncio.Event()
        self._listeners: list[GrpcListener] = []
        self._working: list[asyncio.Task[None]] = []
        self._log: DecisionLog | None = None
        self._background: Child | None = None
        self._id = secrets.token_hex(6)
        self._clock = WorkerClock(settings.max_clock_skew)
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

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def is_ready(self) -> bool:
        """Whether it knows settings to decide by."""
        return self._keys.is_known

    async def until_ready(self) -> None:
        """Wait until the database has told the settings, if no snapshot has."""
        await self._keys.until_known()

    async def _start(self) -> None:
        has_room = self._shared or await preparing(self._settings)
        await self._following_settings.begin()
        if self._keys.is_followed:
            # So that the first decision has the right time, if the database tells it soon.
            await asyncio.wait({asyncio.create_task(self._tell_of_itself())}, timeout=_SOON)
        self._log = decision_log(self._settings, self._id, self._clock.time)
        tls = credentials(self._settings)
        policy = self._policy_listener()
        admin = self._admin_listener()
        await self._tell_health()
        self.grpc = await policy.start(self._settings.grpc, "--grpc", tls)
        self.admin = await admin.start(self._settings.admin, "--admin", tls)
        if self._settings.http is not None:
            self.http = await self._listen_http(self._settings.http)
        if self._position is not None:
            steer((self.grpc.port, self.admin.port), self._position)
        self._work(
            *self._following_settings.work(),
            self._follow_hints(),
            self._watch_health(),
            self._beat(),
            self._flush(self._log),
            self._log.keep_synced(),
        )
        if not self._shared:
            # Last, as no decision waits for it.
            await self._start_background_worker(has_room)

    async def _start_background_worker(self, has_room: bool) -> None:
        self._background = background_worker(self._settings)
        if has_room:
            await self._background.start()
        self._work(keep_background_worker(self._background, self._settings, has_room))

    def _work(self, *work: Coroutine[Any, Any, None]) -> None:
        """Do it until the server stops."""
        self._working += [asyncio.create_task(one) for one in work]

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
        self._policy = PolicyServicer(
            self._keys, default, self._id, self._log.append, self._bodies, self._clock.time
        )
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._policy, listener.server)
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(
            AuthorizationServicer(self._policy, self._bodies), listener.server
        )
        return listener

    def _admin_listener(self) -> GrpcListener:
        path = self._settings.admin_token_file
        guard = TokenInterceptor(
            secrets.token_hex(32), f"it stands in {path.name}, which policyd serve names"
        )
        try:
            guard.accept(tokens.load_or_create(path))
        except NoRoom:
            self._work(self._find_token(guard))
        listener = self._listener((_ADMIN,), [guard], _ADMINISTRATORS)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(self._store, self._keys, self._settings.database_timeout), listener.server
        )
        return listener

    async def _listen_http(self, address: Address) -> Address:
        settings = self._settings
        path = settings.caller_token_file
        token = tokens.load(path, "--caller-token-file") if path else ""
        # Only a policyd that has it waits for all that it is made of.
        from policyd.asgi.listener import Listener
        from policyd.asgi.tls import tls_context
        from policyd.http.app import HttpCheck

        tls = tls_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._app = HttpCheck(
            self._policy.answer,
            self._policy.knows,
            self._bodies,
            token=token,
            max_body=settings.max_body,
            max_message=settings.max_message,
            patience=settings.body_timeout,
            not_ready=self._not_ready,
            remark=self._clock.remark,
            is_stale=self._is_stale,
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

    async def _not_ready(self) -> str:
        return self._following_settings.unready

    async def _is_stale(self) -> str:
        return self._following_settings.stale

    async def _tell_health(self) -> None:
        settings = self._following_settings
        for listener in self._listeners:
            is_ready = not settings.unready and not self._is_draining
            await listener.tell(ready=is_ready, fresh=settings.is_fresh)

    async def _watch_health(self) -> None:
        """Tell of every change."""
        settings = self._following_settings
        told = settings.unready, settings.stale
        # It may have changed while the listeners came up.
        await self._tell_health()
        while True:
            # The first settings are news at once.
            first = self._keys.until_known() if not self._keys.is_known else asyncio.sleep(60)
            with suppress(TimeoutError):
                await asyncio.wait_for(first, min(1.0, self._settings.max_staleness / 4))
            before, told = told, (settings.unready, settings.stale)
            if told == before:
                continue
            await self._tell_health()
            unready, stale = told
            if unready != before[0]:
                state = f"NOT_SERVING: {unready}" if unready else "SERVING"
                _log.warning("health is now %s", state)
            if stale != before[1]:
                _log.warning("%s", stale or "the settings are fresh again")

    async def _find_token(self, guard: TokenInterceptor) -> None:
        """Let administrators in once there is room for their token."""
        while True:
            await asyncio.sleep(_ROOM)
            with suppress(NoRoom):
                path = self._settings.admin_token_file
                return guard.accept(tokens.load_or_create(path))

    async def _follow_hints(self) -> None:
        async for _ in self._store.hints():
            self._keys.hint()

    async def _beat(self) -> None:
        while True:
            told = await self._tell_of_itself()
            status = NOT_SERVING if self._clock.is_wrong else SERVING
            for listener in self._listeners:
                await listener.tell_of(_CLOCK, status)
            with suppress(RevisionNotReached):
                await self._keys.wait_for(told + 1, _BEAT)

    async def _tell_of_itself(self) -> int:
        """Tell the store that this worker runs, and at which revision: it returns that."""
        told = (self._id, socket.gethostname(), self._keys.revision, self._keys.epoch)
        if self._keys.is_followed:
            try:
                self._clock.measured(await self._beating.run(self._store.workers.beat, *told))
            except (StoreUnavailable, StoreBusy):
                pass  # Following the settings meets the same, and says so.
            except Exception as error:  # noqa: BLE001  # Whatever it was, the next beat may work.
                _log.error("this worker cannot be told of to the database: %s", error)
        return told[2]

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
            await self._tell_health()
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

    async def _end_working(self) -> None:
        for task in self._working:
            task.cancel()
        for problem in await asyncio.gather(*self._working, return_exceptions=True):
            if isinstance(problem, Exception):
                _log.error("a part of policyd had ended before its time: %r", problem)

    async def stop(self) -> None:
        """Stop at once to take new calls, and wait for those under way up to the grace period."""
        told = None if self._is_replaced else NOT_SERVING
        stopping = [one.stop(self._settings.grace, told) for one in self._listeners]
        if self._http is not None:
            stopping.append(self._http.stop())
        await asyncio.gather(*stopping)
        await self._end_working()
        if self._keys.is_followed:
            with suppress(StoreUnavailable, StoreBusy):
                await StoreThreads("leaving", _LEAVE).run(self._store.workers.leave, self._id)
        if self._log is not None:
            self._log.flush()
            await self._log.close()
            self._log = None
        if self._background is not None:
            # Last, so that it ships all that was written.
            await self._background.stop()
        self._store.close()


def decision_log(
    settings: ServerSettings, process: str, clock: Callable[[], float] = time.time
) -> DecisionLog:
    """The decision log of one process. Raises SettingsError."""
    sync = settings.spool_sync
    return DecisionLog(
        SpoolWriter(settings.spool, process, settings.spool_limit, sync),
        process,
        drop_when_full=settings.drop_when_full,
        drop_on_error=settings.drop_on_error,
        sync=sync,
        clock=clock,
    )


def _limits(settings: ServerSettings) -> Limits:
    return Limits(
        connections=settings.connections,
        head=settings.head_timeout,
        body=settings.body_timeout,
        idle=settings.idle_timeout,
        write=settings.write_timeout,
    )
