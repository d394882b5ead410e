"""PostgreSQL's connections: neither side waits long for the other when it is silent.

policyd gives up and closes a connection on which an answer is overdue. It tells the server to end
whatever a policyd holds that has vanished or stands still: a statement, a wait for a lock, a
transaction. Settings in the database's URL take precedence over all of these.
"""

import math
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.errors import ConnectionTimeout
from sqlalchemy import event

from policyd.command import deadline

_Result = TypeVar("_Result")

_LEAST_CONNECT = 2
"""Seconds, at least, that the driver gives a server to accept a connection."""
_GIVEN = re.compile(r"(?:-c\s*|--)([a-zA-Z_]+)\s*=")
"""Finds the names of settings in the URL's `options`."""
_LOCK = 0.6
_IDLE = 0.4
"""The shares of the timeout for which a statement waits for a lock, and for which a transaction
that holds one may stand still. So a vanished replica loses its locks before another gives up."""
_SINCE = {"tcp_user_timeout": 120_000, "client_connection_check_interval": 140_000}
"""The first version of PostgreSQL that knows a setting, where some versions in use do not."""


class Overdue(psycopg.OperationalError):
    """The server was silent for longer than a call may take. The connection is closed."""


class _Cursor(psycopg.Cursor[Any]):
    """A cursor after whose every statement PostgreSQL ends a transaction that stands still.

    psycopg sends many rows through a pipeline. What it sends after the last of them stops the
    server's timer, so that a replica that vanished then would hold its locks for hours. A plain
    statement starts the timer again. COPY needs none: it is one statement for all rows.
    """

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """See psycopg.Cursor. With COPY, the parameters are the only row."""
        if _is_copy(query):
            self._copy(query, (params,))
            return self
        return super().execute(query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        """See psycopg.Cursor. With COPY, the parameters are the rows."""
        if _is_copy(query):
            self._copy(query, params_seq)
            return
        super().executemany(query, params_seq, **options)
        self.connection.execute("SELECT 1")

    def _copy(self, query: Any, rows: Iterable[Sequence[Any]]) -> None:
        with self.copy(query) as copy:
            for row in rows:
                copy.write_row(row)


def _is_copy(query: Any) -> bool:
    return isinstance(query, str) and query.startswith("COPY ")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose every wait ends by the running thread's deadline.

    `silence` is how many seconds the server may be silent. Where a statement may take longer than
    that, `probe` asks the server on another connection whether it is alive.
    """

    silence: float = math.inf
    probe: Callable[[], object] = staticmethod(bool)
    statement: float = 0.0
    """How many seconds the running statement may take, where that is longer than `silence`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = _Cursor

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """See psycopg.Connection. Raises Overdue."""
        if math.isfinite(deadline.remaining()):
            gen = self._bounded(gen)
        return super().wait(gen, *arguments, **options)

    def _bounded(self, work: Generator[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
        """`work`, with a look at the clock after each wait for the server."""
        heard_at = time.monotonic()
        try:
            state = next(work)
            while True:
                ready = yield state
                if ready or self._lives(time.monotonic() - heard_at):
                    heard_at = time.monotonic()
                self._check(time.monotonic() - heard_at)
                state = work.send(ready)
        except StopIteration as end:
            result: _Result = end.value
            return result

    def _check(self, silent: float) -> None:
        if silent <= self.silence and not deadline.is_over():
            return
        self.pgconn.finish()
        raise Overdue(deadline.OVERDUE)

    def _lives(self, silent: float) -> bool:
        """Whether a server that is silent here answers on another connection."""
        if silent < self.silence / 2 or self.statement <= self.silence:
            return False
        try:
            with deadline.within(self.silence / 2):
                self.probe()
        except (Overdue, ConnectionTimeout):
            return False
        except psycopg.Error:
            pass  # It answers, if only to refuse another connection.
        return True


def patience(timeout: float) -> dict[str, str]:
    """Settings of PostgreSQL's client library, unless the URL sets them."""
    return {
        "connect_timeout": str(max(math.ceil(timeout / 2), _LEAST_CONNECT)),
        "tcp_user_timeout": str(math.ceil(timeout * 1000)),
        "keepalives": "1",
        "keepalives_idle": str(_seconds(timeout / 2)),
        "keepalives_interval": str(_seconds(timeout / 6)),
        "keepalives_count": "3",
    }


def _session(timeout: float) -> dict[str, str]:
    """Settings of each session on the server, unless the URL sets them."""
    return {
        "statement_timeout": _milliseconds(timeout),
        "lock_timeout": _milliseconds(timeout * _LOCK),
        "idle_in_transaction_session_timeout": _milliseconds(timeout * _IDLE),
        "tcp_keepalives_idle": str(_seconds(timeout / 2)),
        "tcp_keepalives_interval": str(_seconds(timeout / 6)),
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": _milliseconds(timeout),
        "client_connection_check_interval": _milliseconds(timeout),
    }


def _seconds(value: float) -> int:
    return max(math.ceil(value), 1)


def _milliseconds(seconds: float) -> str:
    return str(min(max(math.ceil(seconds * 1000), 1), 2**31 - 1))


def bound(engine: sa.Engine, timeout: float) -> None:
    """Have the engine make bounded connections."""
    given = frozenset(_GIVEN.findall(str(engine.url.query.get("options", ""))))
    told = {name: value for name, value in _session(timeout).items() if name not in given}

    def connect(_: object, __: object, where: Any, how: Mapping[str, Any]) -> BoundedConnection:
        return _connect(where, how, told, timeout)

    event.listen(engine, "do_connect", connect)


def open_connection(engine: sa.Engine, timeout: float) -> BoundedConnection:
    """A connection beside the engine's, in which each statement is a transaction.

    Raises psycopg.Error.
    """
    where, how = engine.dialect.create_connect_args(engine.url)
    with deadline.within(timeout):
        connection = _connect(where, how, {}, timeout)
    connection.autocommit = True
    return connection


def _connect(
    where: Any, how: Mapping[str, Any], told: Mapping[str, str], timeout: float
) -> BoundedConnection:
    if deadline.is_over():
        raise Overdue(deadline.OVERDUE)
    most = min(float(how.get("connect_timeout", 0)) or timeout, deadline.remaining())
    how = {**how, "connect_timeout": str(max(math.ceil(most), _LEAST_CONNECT))}
    with deadline.within(timeout):
        connection = BoundedConnection.connect(*where, **how)
        connection.silence = timeout
        connection.probe = lambda: _connect(where, how, {}, timeout / 2).close()
        _tell(connection, told)
    return connection


def _tell(connection: BoundedConnection, told: Mapping[str, str]) -> None:
    version = connection.info.server_version
    known = {name: value for name, value in told.items() if version >= _SINCE.get(name, 0)}
    if not known:
        return
    connection.autocommit = True
    calls = ", ".join("set_config(%s, %s, false)" for _ in known)
    words = [word for pair in known.items() for word in pair]
    connection.execute(f"SELECT {calls}".encode(), words)
    connection.autocommit = False


def allow_statements(connection: sa.Connection, seconds: float) -> None:
    """Let each statement of this transaction run, and wait for locks, for up to `seconds`."""
    value = _milliseconds(seconds)
    connection.exec_driver_sql(
        "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true)",
        (value, value),
    )
