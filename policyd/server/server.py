"""The composition root: one worker, with its store, its key table and its listeners."""

import asyncio
import logging
import secrets
import socket
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc

from policyd.asgi.limits import Limits
from policyd.command.address import Address, steer
from policyd.command.child import Child, End
from policyd.command.serving_settings import ANSWER_MEMORY
from policyd.command.worker_clock import WorkerClock
from policyd.decider import Decider
from policyd.decision_log.process_log import keep_checked, keep_flushed, open_log
from policyd.decision_log.writer import DecisionLog
from policyd.descriptor.body_memory import Bodies
from policyd.keys import tokens
from policyd.keys.defaults import Defaults
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE
from policyd.server.admin_token import accept_later, guard_of
from policyd.server.following import Following
from policyd.server.health import Health
from policyd.server.opening import OpenedStore
from policyd.server.preparation import background_worker, keep_background_worker, preparing
from policyd.server.presence import Presence
from policyd.server.readiness import Readiness
from policyd.server.telemetry import Telemetry
from policyd.services.admin import AdminServicer
from policyd.services.authentication import TokenInterceptor
from policyd.services.envoy_access_log import ACCESS_LOG, AccessLogServicer
from policyd.services.errors import Note, unnoted
from policyd.services.ext_authz import AuthorizationServicer
from policyd.services.followers import Followers
from policyd.services.grpc_server import NOT_SERVING, Bounds, GrpcListener, credentials
from policyd.services.policy import PolicyServicer
from policyd.settings import ServerSettings
from policyd.store import Store
from policyd.v1 import admin_pb2, admin_pb2_grpc, local_pb2, policy_pb2, policy_pb2_grpc

if TYPE_CHECKING:
    from policyd.server.http_check import HttpServer
    from policyd.server.local_decisions import LocalDecisions

_log = logging.getLogger(__name__)

_HANDSHAKE = 5.0
"""Seconds that a gRPC client has, at most, to begin. At the limit of connections, gRPC ends none to
make room for a new one, so those that send nothing must end soon."""
_ADMINISTRATORS = 32
"""Connections to AdminService, at most."""
_SOON = 1.0
"""Seconds, at most, that a start waits for the database's time."""
_POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_AUTHORIZATION = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"].full_name
_LOCAL = local_pb2.DESCRIPTOR.services_by_name["LocalDecisionService"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


class Server:
    """One worker: answers PolicyService and AdminService until it is stopped.

    `async with Server(settings) as server:` runs it; `server.grpc`, `server.admin` and
    `server.http` are the addresses that it listens at. `shared` is for several workers on one port;
    they take HTTP connections from one socket, `listening`. A worker that takes another's place has
    a `position`: see address.steer().

    It starts even while the database is away. If there is no snapshot of the settings either, it
    answers that it cannot decide yet. Starting raises SettingsError, CannotListen or StoreUnusable.
    Of `shared` workers, only those that are `is_first` raise StoreUnusable: others wait until the
    database is usable again.
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
        self._opened = opened = OpenedStore(self._store, settings)
        self._clock = WorkerClock(settings.max_clock_skew)
        self._keys = StoredKeyTable(
            opened.changes_since, settings.database_timeout, self._clock.time
        )
        own = TABLE.with_original(settings.default_mode)
        self._defaults = Defaults(self._keys, own, settings.end_users_from)
        self._following_settings = Following(
            self._keys, opened, settings, ends=is_first or not shared
        )
        self._listening = listening
        self._position = position
        self._is_replaced = False
        self._hurrying = asyncio.Event()
        self._listeners: list[GrpcListener] = []
        self._id = secrets.token_hex(6)
        self._followers = Followers()
        self._presence = Presence(
            *(self._id, self._store, self._keys, self._clock, settings.database_timeout),
            self._followers,
        )
        self._readiness = Readiness(self._keys, self._following_settings, self._presence)
        self._health = Health(
            *(self._keys, self._following_settings, self._readiness),
            *(self._listeners, settings.max_staleness),
        )
        self._working: list[asyncio.Task[None]] = []
        self._log: DecisionLog | None = None
        self._background: Child | None = None
        self._bodies = Bodies(settings.memory)
        self._telemetry = Telemetry(settings, self._keys, self._clock, self._bodies)
        self.grpc = settings.grpc
        self.admin = settings.admin
        self.http = settings.http
        self._http: HttpServer | None = None

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
        """Wait until it knows settings to decide by, from the snapshot or the database."""
        await self._keys.until_known()

    async def _start(self) -> None:
        has_room = self._shared or await preparing(self._settings)
        await self._following_settings.begin()
        if self._keys.is_followed:
            # So the first decision has the right time, if the database answers soon.
            await asyncio.wait({asyncio.create_task(self._presence.tell())}, timeout=_SOON)
        self._log = open_log(self._settings, self._id, self._clock.time)
        self._readiness.log = self._log
        tls = credentials(self._settings)
        policy = self._policy_listener()
        admin = self._admin_listener()
        await self._health.tell()
        self.grpc = await policy.start(self._settings.grpc, "--grpc", tls)
        self.admin = await admin.start(self._settings.admin, "--admin", tls)
        if self._settings.http is not None:
            self.http = await self._listen_http(self._settings.http)
        if self._position is not None:
            steer((self.grpc.port, self.admin.port), self._position)
        self._work(
            *self._following_settings.work(),
            self._follow_hints(),
            self._health.watch(),
            self._presence.keep_telling(self._listeners),
            keep_flushed(self._log),
            keep_checked(self._log),
            self._log.keep_synced(),
            *self._telemetry.work(self._log),
        )
        if not self._shared:
            # Last, as no decision needs it.
            await self._start_background_worker(has_room)

    async def _start_background_worker(self, has_room: bool) -> None:
        self._background = background_worker(self._settings)
        if has_room:
            await self._background.start()
        self._work(keep_background_worker(self._background, self._settings, has_room))

    def _work(self, *work: Coroutine[Any, Any, None]) -> None:
        """Run these until the server stops."""
        self._working += [asyncio.create_task(one) for one in work]

    def _policy_listener(self) -> GrpcListener:
        guards: list[grpc.aio.ServerInterceptor] = []
        note = self._telemetry.note
        if path := self._settings.caller_token_file:
            token = tokens.load(path, "--caller-token-file")
            hint = f"ask policyd's operator for the one in {path.name}"
            guards.append(TokenInterceptor(token, hint, note, but=(_LOCAL,)))
        local = self._local()
        if local is not None:
            guards.append(local.guard(note))
        # Only once, as it logs a warning where there is no room for so many connections.
        self._limits = _limits(self._settings)
        connections = self._limits.connections
        services = (_POLICY, _AUTHORIZATION, ACCESS_LOG, *([_LOCAL] if local else []))
        listener = self._listener(services, guards, connections, note)
        assert self._log is not None
        self._decider = Decider(
            self._keys,
            self._defaults,
            self._id,
            self._log.append,
            self._bodies,
            self._clock.time,
            self._telemetry.decisions,
            self._telemetry.access,
            self._telemetry.traces(),
        )
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(
            PolicyServicer(self._decider, partial(self._defaults.trusted, "grpc")), listener.server
        )
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(
            AuthorizationServicer(
                self._decider, self._bodies, partial(self._defaults.trusted, "envoy")
            ),
            listener.server,
        )
        access_log = AccessLogServicer(self._decider, self._telemetry.decisions)
        listener.server.add_generic_rpc_handlers((access_log.handler(),))
        if local is not None:
            counted = self._telemetry.count_shipped()
            handler = local.handler(self._keys, self._clock, note, counted)
            listener.server.add_generic_rpc_handlers((handler,))
        return listener

    def _local(self) -> "LocalDecisions | None":
        settings = self._settings
        if settings.local_token_file is None:
            return None
        # Imported late, so that a policyd without --local-token-file starts sooner.
        from policyd.server.local_decisions import LocalDecisions

        self._telemetry.count(self._followers)
        stores = (self._store, self._opened)
        return LocalDecisions(settings.local_token_file, settings, *stores, self._followers)

    def _admin_listener(self) -> GrpcListener:
        path = self._settings.admin_token_file
        guard, has_token = guard_of(path)
        if not has_token:
            self._work(accept_later(guard, path))
        listener = self._listener((_ADMIN,), [guard], _ADMINISTRATORS)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(self._store, self._keys, self._settings.database_timeout), listener.server
        )
        return listener

    async def _listen_http(self, address: Address) -> Address:
        # Imported late, so that a policyd without --http starts sooner.
        from policyd.server.http_check import HttpServer

        self._http = HttpServer(
            *(self._settings, self._limits, self._decider, self._bodies, self._following_settings),
            *(self._readiness, self._clock),
            note=self._telemetry.note,
            defaults=self._defaults,
        )
        self._telemetry.look_at(self._http)
        return await self._http.start(address, self._listening)

    def _listener(
        self,
        services: tuple[str, ...],
        guards: list[Any],
        connections: int,
        note: Note = unnoted,
    ) -> GrpcListener:
        settings = self._settings
        bounds = Bounds(
            max_message=settings.max_message,
            connections=connections,
            handshake=min(settings.head_timeout, _HANDSHAKE),
            age=settings.max_connection_age,
        )
        listener = GrpcListener(services, guards, bounds, self._shared, note, lasting=(_LOCAL,))
        self._listeners.append(listener)
        return listener

    async def _follow_hints(self) -> None:
        async for _ in self._store.hints():
            self._keys.hint()

    async def wind_down(self, end: End) -> None:
        """Go on answering for as long as `end` asks for. Returns when the worker is to be stopped.

        A worker that is drained reports that it is not ready. One that is replaced does not, as
        another has taken its place.
        """
        if end is End.NOW:
            return
        seconds = self._settings.drain
        if self._http is not None:
            self._http.wind_down()
        if end is End.REPLACE:
            self._is_replaced, seconds = True, self._settings.handover
        else:
            _log.info(
                "policyd says NOT_SERVING, and ends in %g s: a second signal ends it at once",
                seconds,
            )
            if self._http is not None:
                self._http.drain()
            await self._health.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurrying.wait()

    def hurry(self) -> None:
        """Stop waiting, both in wind_down() and for requests under way."""
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
                _log.error("a task of policyd had ended early: %r", problem)

    async def stop(self) -> None:
        """Take no new calls, and wait for those under way up to the grace period."""
        told = None if self._is_replaced else NOT_SERVING
        stopping = [one.stop(self._settings.grace, told) for one in self._listeners]
        if self._http is not None:
            stopping.append(self._http.stop())
        await asyncio.gather(*stopping)
        self._bodies.close()
        await self._end_working()
        await self._presence.leave()
        if self._log is not None:
            self._log.flush()
            await self._log.close()
            self._log = None
        await self._telemetry.end()
        if self._background is not None:
            # Last, so that it ships everything that was written.
            await self._background.stop()
        self._store.close()


def _limits(settings: ServerSettings) -> Limits:
    return Limits(
        connections=settings.connections,
        head=settings.head_timeout,
        body=settings.body_timeout,
        idle=settings.idle_timeout,
        write=settings.write_timeout,
        unread=ANSWER_MEMORY,
    )
