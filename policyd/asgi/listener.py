"""uvicorn behind one socket: started, drained and stopped by whoever runs it."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from policyd.asgi.connections import (
    SPARE,
    Bounded,
    Connections,
    Limits,
    State,
    Visit,
    keep_sweeping,
)
from policyd.asgi.protocol import Protocol
from policyd.asgi.reply import NO_ROOM
from policyd.command.address import Address, check_free, not_free
from policyd.errors import SettingsError

BACKLOG = 2048
_AT_ONCE = 32
"""Connections that are taken in one turn of the event loop."""
_READ = 64 * 1024
"""Bytes of a request that are read where there is no room for it."""
_LINGER = 0.5
"""Seconds that its client has to read so."""
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LAST_REQUEST = 1.0
"""Seconds that a connection has, at the end, for a request that may be on its way."""
_UNUSED = (State.IDLE,)
_UNASKED = (State.IDLE, State.OPENING, State.HEAD)
_LOOK = 0.05
"""Seconds between two looks, at the end, at what is under way."""
_PAUSE = 0.1
"""Seconds until the next try where the system has no file for a connection."""
_FOR_EVER = 10**9
"""uvicorn's seconds for an idle connection: the door's own table has them."""

_log = logging.getLogger(__name__)

App = Callable[[Any, Any, Any], Awaitable[None]]


class Listener:
    """Serves the ASGI app `app` until it is stopped.

    `grace` is how many seconds requests under way have then, `stream_grace` those whose answer has
    begun, as many if it is not given, and `limits` bound its connections. By default it speaks as a
    gateway does; `options` are uvicorn's, for who wants it otherwise.
    """

    def __init__(
        self,
        app: App,
        *,
        tls: ssl.SSLContext | None,
        grace: float,
        stream_grace: float | None = None,
        limits: Limits | None = None,
        **options: Any,
    ) -> None:
        usual: dict[str, Any] = {
            "http": Protocol,
            "ws": "none",
            "lifespan": "off",
            "interface": "asgi3",
            "log_config": None,
            "access_log": False,
            "proxy_headers": False,
            "server_header": False,
            "date_header": False,
            "backlog": BACKLOG,
            "timeout_keep_alive": _FOR_EVER,
        }
        config = uvicorn.Config(app, **usual | options)
        graces = (grace, grace if stream_grace is None else stream_grace)
        self._server = _Uvicorn(config, tls, limits or Limits(), graces)
        self._running: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._server.connections

    async def start(self, listening: socket.socket, *, shared: bool = False) -> None:
        """Serve what connects to `listening`, which it closes at the end.

        Where it is `shared` with other processes, the connections are left to them in turn.
        """
        self._server.at_once = 1 if shared else _AT_ONCE
        self._running = asyncio.create_task(self._server.serve(sockets=[listening]))
        self._running.add_done_callback(lambda _: self._server.listening.set())
        await self._server.listening.wait()
        if self._running.done():
            await self._running  # It failed; this raises why.

    def wind_down(self) -> None:
        """Answer as before, and have clients connect anew: each answer ends its connection."""
        self._server.wind_down()

    async def stop(self) -> None:
        """Take no new requests, and wait for those under way."""
        self._server.should_exit = True
        if self._running is not None:
            await self._running

    def hurry(self) -> None:
        """Cut the requests under way, where it is being stopped."""
        self._server.force_exit = True


class _Uvicorn(uvicorn.Server):
    """Says when it listens, lets clients in by a door of its own, and leaves signals alone."""

    def __init__(
        self,
        config: uvicorn.Config,
        tls: ssl.SSLContext | None,
        limits: Limits,
        graces: tuple[float, float],
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._limits = limits
        self._graces = graces
        self.at_once = _AT_ONCE
        self._doors: list[_Door] = []
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await self.lifespan.startup()
        self._doors = [
            _Door(one, self._protocol, self._tls, self._limits, self.at_once)
            for one in sockets or ()
        ]
        self.servers = self._doors  # type: ignore[assignment]  # It closes them, and no more.
        self.started = True
        self.listening.set()

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(len(door.crowd) for door in self._doors)

    def _protocol(self) -> Bounded:
        made: Any = self.config.http_protocol_class
        protocol: Bounded = made(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def wind_down(self) -> None:
        """Have each answer end its connection."""
        for door in self._doors:
            door.crowd.wind_down()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server, which knows one bound for all requests, and closes its socket before
        it has taken all connections from it."""
        for door in self._doors:
            door.close()
        self.wind_down()
        grace, stream_grace = self._graces
        began = time.monotonic()
        try:
            while (self.connections or self.server_state.tasks) and not self.force_exit:
                spent = time.monotonic() - began
                for door in self._doors:
                    door.crowd.end(*(_UNASKED if spent >= min(_LAST_REQUEST, grace) else _UNUSED))
                    if spent >= grace:
                        door.crowd.end_requests(answered=False)
                    if spent >= stream_grace:
                        door.crowd.end_requests(answered=True)
                if spent >= max(grace, stream_grace):
                    break
                await asyncio.sleep(_LOOK)
        finally:
            await self._cut()

    async def _cut(self) -> None:
        cut = set(self.server_state.tasks)
        for task in cut:
            task.cancel()
        if cut:  # They can still say why.
            await asyncio.wait(cut, timeout=_LAST_REQUEST)
        for door in self._doors:
            door.cut()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Whoever runs it handles signals."""
        yield


class _Door:
    """Lets clients in at one socket, as many as there is room for."""

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], Bounded],
        tls: ssl.SSLContext | None,
        limits: Limits,
        at_once: int,
    ) -> None:
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._make_protocol = protocol
        self._tls = tls
        self._handshake = {"ssl_handshake_timeout": limits.head} if tls else {}
        self.crowd = Connections(limits, self._loop.time)
        self._opening: set[asyncio.Task[None]] = set()
        self._leaving: list[socket.socket] = []
        """Those that were sent away, and are to read why."""
        self._sweeping = self._loop.create_task(keep_sweeping(self.crowd))
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._open()

    def close(self) -> None:
        """Let no more in, but those that have connected already."""
        self._loop.remove_reader(self._listening)
        for _ in range(BACKLOG):
            if not self._let_in():
                break
        self._listening.close()
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """See asyncio.Server."""

    def cut(self) -> None:
        """End those that are still in."""
        self._sweeping.cancel()
        self.crowd.cut_all()
        while self._leaving:
            self._let_go()

    def _open(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._let_in)

    def _let_in(self) -> bool:
        """Let some in. Returns whether there may be more."""
        for _ in range(self._at_once):
            try:
                client, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionAbortedError:  # Its client has left; others may wait behind it.
                continue
            except OSError as problem:
                if problem.errno in _NO_FILES and not self.crowd.make_room():
                    self._loop.remove_reader(self._listening)
                    self._pause = self._loop.call_later(_PAUSE, self._open)
                return False
            if self.crowd.has_room():
                self._begin(client)
            else:
                self._send_away(client)
        return True

    def _begin(self, client: socket.socket) -> None:
        client.setblocking(False)
        visit = Visit()
        self.crowd.enter(visit)
        task = self._loop.create_task(self._connect(client, visit))
        if self._tls is not None:
            visit.cut = visit.dismiss = task.cancel
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, client: socket.socket, visit: Visit) -> None:
        """Wait until the connection is made, its TLS handshake over."""

        def make() -> Any:
            protocol = self._make_protocol()
            protocol.visit, protocol.crowd = visit, self.crowd
            return protocol

        protocol: Any = None
        try:
            _, protocol = await self._loop.connect_accepted_socket(
                make, client, ssl=self._tls, **self._handshake
            )
        except OSError as problem:  # It is no TLS, or its client has left. A timeout is one, too.
            _log.debug("a connection was not made: %s", problem)
        finally:
            if protocol is None:
                self.crowd.leave(visit)
                client.close()

    def _send_away(self, client: socket.socket) -> None:
        client.setblocking(False)
        if self._tls is not None:
            client.close()
            return
        with contextlib.suppress(OSError):
            client.send(NO_ROOM.raw())
            client.shutdown(socket.SHUT_WR)
        self._leaving.append(client)
        while len(self._leaving) > SPARE:
            self._let_go()
        self._loop.call_later(_LINGER, self._let_go, client)

    def _let_go(self, client: socket.socket | None = None) -> None:
        """Close one that was sent away, by default the first; the others stay."""
        if client is None:
            client = self._leaving[0]
        if client in self._leaving:
            self._leaving.remove(client)
            with contextlib.suppress(OSError):
                # What is not read would have the system cut the connection, and the answer with it.
                client.recv(_READ)
            client.close()


def open_socket(address: Address, *, shared: bool = False) -> socket.socket:
    """A socket that listens at `address`; `shared` is for several processes on one port.

    Raises OSError.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=shared)


def reserve_listening(
    address: Address, flag: str, held: contextlib.ExitStack
) -> tuple[Address, socket.socket]:
    """A socket that several processes take connections from, and its address with the port.

    Raises CannotListen.
    """
    check_free(address, flag)
    try:
        listening = held.enter_context(open_socket(address))
    except OSError:
        raise not_free(address, flag) from None
    return Address(address.host, listening.getsockname()[1]), listening


def tls_context(
    certificate: Path | None, key: Path | None, client_authority: Path | None = None
) -> ssl.SSLContext | None:
    """What to listen with, None for plain HTTP. With `client_authority`, clients must show a
    certificate of it. Raises SettingsError.
    """
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as problem:
        raise SettingsError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({problem}): give a PEM "
            "certificate chain and its PEM key, without a password"
        ) from None
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_authority)
        except (OSError, ssl.SSLError) as problem:
            raise SettingsError(
                f"--tls-client-ca {client_authority} cannot be used ({problem}): give PEM "
                "certificates"
            ) from None
    return context


_NOISE = (
    # The app has logged why, in one line.
    "returned without completing response",
    # Any client could fill the log with these.
    "Invalid HTTP request received",
    "Unsupported upgrade request",
    "No supported WebSocket library detected",
)


class _NoNoise(logging.Filter):
    """Drops what uvicorn logs of single requests and connections."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        return not any(one in str(record.msg) for one in _NOISE)


logging.getLogger("uvicorn.error").addFilter(_NoNoise())
