"""Hints that settings have changed, by PostgreSQL's LISTEN and NOTIFY.

A hint may be lost with its connection, so workers poll as well: a hint makes a change arrive
sooner, and nothing depends on it.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import closing, suppress

import sqlalchemy as sa

from policyd.command import deadline
from policyd.store.engine import timeout_of

_log = logging.getLogger(__name__)
_CHANNEL = "policyd_settings"
_PAUSE = 5.0
"""Seconds before a lost connection is made again."""


def give(connection: sa.Connection) -> None:
    """Notify all workers, when this transaction commits, that settings have changed."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")


async def follow(engine: sa.Engine) -> AsyncIterator[None]:
    """Yields at every hint, for ever. On SQLite, which has no hints, it ends at once."""
    if engine.dialect.name != "postgresql":
        return
    heard, stopped = asyncio.Event(), threading.Event()
    listener = _Listener(engine, asyncio.get_running_loop(), heard, stopped)
    threading.Thread(target=listener.listen, name="store: hints", daemon=True).start()
    try:
        while True:
            await heard.wait()
            heard.clear()
            yield
    finally:
        stopped.set()


class _Listener:
    """Listens in a thread of its own, so that a silent database holds up nothing else."""

    def __init__(
        self,
        engine: sa.Engine,
        loop: asyncio.AbstractEventLoop,
        heard: asyncio.Event,
        stopped: threading.Event,
    ) -> None:
        self._engine = engine
        self._timeout = timeout_of(engine)
        self._loop = loop
        self._heard = heard
        self._stopped = stopped

    def listen(self) -> None:
        """Listen until it is stopped. A connection that is lost or silent is replaced."""
        # psycopg is an extra that SQLite does not need.
        import psycopg

        while not self._stopped.is_set():
            try:
                self._listen()
            except psycopg.Error as error:
                _log.debug("no hints of changed settings for now: %s", type(error).__name__)
            self._stopped.wait(_PAUSE)

    def _listen(self) -> None:
        from policyd.store.postgresql import open_connection

        with closing(open_connection(self._engine, self._timeout)) as connection:
            with deadline.within(self._timeout):
                connection.execute(f"LISTEN {_CHANNEL}")
            # Hints that came before this connection may have been missed.
            self._tell()
            while not self._stopped.is_set():
                # A server that has vanished is noticed only by asking it.
                for _ in connection.notifies(timeout=self._timeout / 2):
                    self._tell()
                with deadline.within(self._timeout):
                    connection.execute("SELECT 1")

    def _tell(self) -> None:
        with suppress(RuntimeError):  # The loop has ended.
            self._loop.call_soon_threadsafe(self._heard.set)
