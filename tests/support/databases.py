"""New databases for tests: copies of one that is migrated once a run."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from policyd.command.database_url import sqlite_file
from policyd.store import Store


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policyd.db"
        store = Store(f"sqlite:///{file}")
        store.migrate()
        store.close()
        return file.read_bytes()


def open_store(url: str) -> Store:
    """A store on a new database at `url`; on PostgreSQL, where there is an empty one."""
    if url.startswith("sqlite"):
        return Store(put_database(url))
    wanted = sa.make_url(url)
    database = str(wanted.database)
    with closing(_administrator(wanted)) as cluster:
        cluster.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(database)))
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        template = sql.Identifier(_template(wanted.set(database="migrated")))
        cluster.execute(copy.format(sql.Identifier(database), template))
    return Store(url)


@cache
def _template(url: sa.URL) -> str:
    """The name of a migrated database of the cluster; nothing is connected to it."""
    with closing(_administrator(url)) as cluster:
        cluster.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(str(url.database))))
    store = Store(url.render_as_string(hide_password=False))
    store.migrate()
    store.close()
    return str(url.database)


def _administrator(url: sa.URL) -> psycopg.Connection[tuple[object, ...]]:
    host = str(url.query["host"])
    return psycopg.connect(host=host, user=url.username, dbname="postgres", autocommit=True)


def put_database(url: str) -> str:
    """Put a new database at `url`, where no file exists yet; all share one identity."""
    file = sqlite_file(url)
    assert file is not None
    file.touch(0o600, exist_ok=False)
    file.write_bytes(_migrated())
    return url


def migrated(folder: Path) -> Path:
    """`folder`, with a new database where a Policyd there has it, so that it need not make one."""
    put_database(f"sqlite:///{folder}/policyd.db")
    return folder


@contextmanager
def taking_changes() -> Iterator[Callable[[bool], None]]:
    """A function that says whether this process's SQLite databases take changes: where they do
    not, each fails with the error of a read-only file, for root too."""
    taken = True

    def allow(changes: bool) -> None:
        nonlocal taken
        taken = changes

    def obey(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA query_only = {int(not taken)}")

    sa.event.listen(sa.Pool, "checkout", obey)
    try:
        yield allow
    finally:
        sa.event.remove(sa.Pool, "checkout", obey)
