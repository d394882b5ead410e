"""The door of a listener: takes connections from its socket, as many as there is room for."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from policyd.asgi.bounded import Bounded
from policyd.asgi.connections import SPARE, Connections, Limits, keep_sweeping
from policyd.asgi.reply import NO_ROOM
from policyd.asgi.visit import Visit
from policyd.command.address import BACKLOG

_log = logging.getLogger(__name__)


_READ = 64 * 1024
"""Bytes of a request that are read where there is no room for it."""


_LINGER = 0.5
"""Seconds that its client has to read so."""


_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


_PAUSE = 0.1
"""Seconds until the next try where the system has no file for a connection."""


class Door:
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
