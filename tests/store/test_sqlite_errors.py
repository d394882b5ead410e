"""SQLite's errors name the file and what to do, by their kind."""

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from policyd.errors import StoreUnavailable
from policyd.store import Store, sqlite_errors
from policyd.store.database import writing
from tests.support.databases import put_database

KINDS = [
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a new database."""
    put_database(f"sqlite:///{tmp_path}/policyd.db")
    return tmp_path / "policyd.db"


def error_of(file: Path, work: Any = None, timeout: float = 1) -> str:
    """What a write to the database in the file reports."""
    store = Store(f"sqlite:///{file}", timeout=timeout)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            work(store) if work else store.keys.create("app", ())
    finally:
        store.close()
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_fix(kind: int, tmp_path: Path) -> None:
    """Whatever SQLite adds to an error's code, its kind says what to do, and names the place."""
    for code in (kind, kind | 3 << 8):
        assert str(tmp_path) in sqlite_errors.advice(code, tmp_path / "policyd.db")
    assert sqlite_errors.advice(sqlite3.SQLITE_CONSTRAINT, tmp_path / "policyd.db") == ""


def test_locked(file: Path) -> None:
    """The error names the lock that another program holds, and how to find that program."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    told = error_of(file)
    other.close()
    assert "database is locked" in told
    assert f"fuser {file}" in told


def test_full(file: Path) -> None:
    """A database that finds no more room says where to make some."""

    def fill(store: Store) -> None:
        with writing(store._engine) as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            connection.exec_driver_sql("CREATE TABLE more (a)")

    told = error_of(file, fill)
    assert "full" in told
    assert f"make some in {file.parent}" in told


def test_cannot_be_opened(tmp_path: Path) -> None:
    """The errors distinguish a folder in the file's place from a missing folder."""
    (tmp_path / "folder.db").mkdir()
    assert "it is a folder" in error_of(tmp_path / "folder.db")
    assert f"there is no folder {tmp_path / 'no'}" in error_of(tmp_path / "no" / "policyd.db")


def test_damaged(file: Path) -> None:
    """A damaged file is named."""
    file.write_bytes(b"nonsense" * 1000)
    assert "is damaged" in error_of(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every file")
def test_read_only(file: Path) -> None:
    """The error names the user who may not write to the file."""
    file.chmod(0o400)
    assert f"writable for the user {os.geteuid()}" in error_of(file)
