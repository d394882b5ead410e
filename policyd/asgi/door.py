"""The door of a listener: takes connections from its socket, as many as there is room for.

A client for which there is no room gets an answer that says so (503). With TLS its connection is
just closed, as an answer would need a handshake first.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from policyd.asgi.bounded import Bounded
from policyd.asgi.connections import SPARE, Connections, keep_sweeping
from policyd.asgi.limits import Limits
from policyd.asgi.reply import NO_ROOM
from policyd.asgi.visit import Visit
from policyd.command.address import BACKLOG

_log = logging.getLogger(__name__)


_READ = 64 * 1024
"""Bytes of the request that are read from a client that is turned away."""


_LINGER = 0.5
"""Seconds that such a client has to read its answer."""


_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


_PAUSE = 0.1
"""Seconds until the next attempt where the system has no file descriptor for a connection."""


class Door:
    """Takes connections from one socket, up to `at_once` in one turn of the event loop."""

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
        """Sockets of clients that were turned away and may still read their answer."""
        self._sweeping = self._loop.create_task(keep_sweeping(self.crowd))
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._open()

    def close(self) -> None:
        """Take no more connections, except those that wait in the socket already."""
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
        """End the connections that are still open."""
        self._sweeping.cancel()
        self.crowd.cut_all()
        while self._leaving:
            self._let_go()

    def _open(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._let_in)

    def _let_in(self) -> bool:
        """Take connections. Returns whether more may be waiting."""
        for _ in range(self._at_once):
            try:
                client, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionAbortedError:  # This client has left; others may wait behind it.
                continue
            except OSError as problem:
                if problem.errno in _NO_FILES and not self.crowd.make_room():
                    self._loop.remove_reader(self._listening)
                    self._pause = self._loop.call_later(_PAUSE, self._open)
                return False
            if self.crowd.has_room():
                self._begin(client)
            else:
                self._turn_away(client)
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
        """Make the connection, with its TLS handshake."""

        def make() -> Any:
            protocol = self._make_protocol()
            protocol.visit, protocol.crowd = visit, self.crowd
            return protocol

        protocol: Any = None
        try:
            _, protocol = await self._loop.connect_accepted_socket(
                make, client, ssl=self._tls, **self._handshake
            )
        except OSError as problem:  # Not TLS, a handshake that takes too long, or the client left.
            _log.debug("a connection was not made: %s", problem)
        finally:
            if protocol is None:
                self.crowd.leave(visit)
                client.close()

    def _turn_away(self, client: socket.socket) -> None:
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
        """Close the socket of a client that was turned away, by default the first one."""
        if client is None:
            client = self._leaving[0]
        if client in self._leaving:
            self._leaving.remove(client)
            with contextlib.suppress(OSError):
                # Closing with unread bytes would reset the connection, and lose the answer.
                client.recv(_READ)
            client.close()
