"""New SQLite databases for tests: copies of one that is migrated once a run."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

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
    """A store on a new database at `url`; on SQLite as put_database() makes it."""
    if url.startswith("sqlite"):
        return Store(put_database(url))
    store = Store(url)
    store.migrate()
    return store


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
