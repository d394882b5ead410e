"""SQLite's database as a file: backed up while it is in use, restored, and vacuumed.

A copy that `cp` makes of a database in use cannot be relied on: recent changes are in the file
beside it (FILE-wal), and the rest changes while it is copied.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from policyd.command.private_files import make_file
from policyd.errors import StoreUnavailable
from policyd.store import migrations
from policyd.store.database import errors
from policyd.store.engine import INCREMENTAL
from policyd.store.space import STEP, cut

_PAGES = 256
"""Pages that are copied in one step: about a megabyte."""
_PAUSE = 0.002
"""Seconds between two steps of a copy, in which servers have the disk."""
_WAIT = 10.0
"""Seconds to wait for another program's lock."""
_HEADER = 20
"""Bytes of a file's head. The last two say whether the database uses a write-ahead log."""

Progress = Callable[[int, int], None]
"""Called with how many pages are done, and how many there are."""


class BackupRefused(StoreUnavailable):
    """A file cannot be backed up, restored or used. Nothing was changed."""


def backup(source: Path, target: Path, progress: Progress) -> None:
    """Copy the database, as it is at this moment, into a new file that only its owner may read.

    Servers read and write as before meanwhile. The file appears once it is whole and checked.
    Raises BackupRefused, StoreUnavailable.
    """
    if os.path.lexists(target):
        raise BackupRefused(f"there is a file {target} already: name another, or remove it")
    draft = _draft(target)
    try:
        with _failing("the database cannot be backed up"):
            with closing(_open(source)) as reader, closing(_open(draft)) as writer:
                _copy(reader, writer, progress)
                # The backup is one file, without a FILE-wal.
                writer.execute("PRAGMA journal_mode = DELETE")
            _check(draft)
            _sync(draft)
            os.link(draft, target)  # Unlike a rename, it replaces nothing.
            _sync(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _check(file: Path) -> migrations.Form:
    """The form of the database in the file. Raises BackupRefused where it is damaged, is not
    policyd's, or has a form that this version cannot work on."""
    try:
        with closing(sqlite3.connect(f"file:{_quoted(file)}?mode=ro", uri=True)) as connection:
            problems = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.Error as error:
        problems = [str(error)]
    if problems != ["ok"]:
        raise BackupRefused(f"{file} is damaged, or no SQLite database: {'; '.join(problems)}")
    engine = sa.create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(f"file:{_quoted(file)}?mode=ro", uri=True)
    )
    try:
        with errors(file), engine.connect() as connection:
            found = migrations.form(connection)
    finally:
        engine.dispose()
    if found.revision is None:
        raise BackupRefused(f"{file} is not a database of policyd")
    if not found.is_behind:
        try:
            found.check()
        except StoreUnavailable as error:
            raise BackupRefused(f"{file} cannot be put back: {error}") from None
    return found


def restore(source: Path, target: Path, at: datetime, progress: Progress) -> Path | None:
    """Put the database in `source` in the place of `target`, as a new state of it.

    The previous database is kept beside it; returns where. Raises BackupRefused, and changes
    nothing, where a process has `target` open or `source` is not usable.
    """
    if not source.is_file():
        raise BackupRefused(f"there is no file {source}: name one that policyd db backup wrote")
    _check_whole(source)
    _check(source)
    draft = _draft(target)
    aside = target.with_name(f"{target.name}.before-restore-{at:%Y%m%dT%H%M%S}")
    try:
        with _failing("the database cannot be restored"):
            with closing(_open(source)) as reader, closing(_open(draft)) as writer:
                _copy(reader, writer, progress)
                writer.execute("PRAGMA journal_mode = DELETE")
                _begin_new_state(writer)
                writer.commit()
            _sync(draft)
            with _out_of_use(target) as is_there:
                if is_there:
                    os.link(target, aside)
                os.replace(draft, target)
                _sync(target.parent)
    finally:
        draft.unlink(missing_ok=True)
    return aside if is_there else None


def _check_whole(source: Path) -> None:
    """Raises BackupRefused for a copy of a database in use: part of it may be in its FILE-wal."""
    with _failing(f"{source} cannot be read"), source.open("rb") as file:
        if file.read(_HEADER)[-2:-1] == b"\x02":
            raise BackupRefused(
                f"{source} is a database that was in use, and parts of it may stand in {source}-wal"
                f": policyd db backup --database-url sqlite:///{source} --output FILE makes a "
                "backup of it, if both files are there"
            )


def _begin_new_state(connection: sqlite3.Connection) -> None:
    """Give the file a revision of its own, so that servers notice another state of the database and
    read all keys again."""
    connection.execute("UPDATE revision SET value = value + 1")


@contextmanager
def _out_of_use(file: Path) -> Iterator[bool]:
    """Keep every process from the file during the block. Yields whether there is a file.

    All changes are then in the file itself, and none in its FILE-wal. Raises BackupRefused where a
    process has it open.
    """
    if not file.exists():
        yield False
        return
    with closing(sqlite3.connect(file, isolation_level=None, timeout=1.0)) as connection:
        try:
            # Every process that has it open holds a lock that these statements cannot pass.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise BackupRefused(
                f"{file} is in use: stop policyd serve, and close what else has it open, first"
            ) from None
        except sqlite3.DatabaseError:
            pass  # It is damaged, which is why a backup is to take its place.
        yield True


def free_pages(file: Path) -> tuple[int, int, int]:
    """How many bytes a page has, how many pages there are, and how many of them are free."""
    with _failing("the database cannot be looked at"), closing(_open(file)) as connection:
        names = ("page_size", "page_count", "freelist_count")
        size, pages, free = (connection.execute(f"PRAGMA {n}").fetchone()[0] for n in names)
        return size, pages, free


def gives_back(file: Path) -> bool:
    """Whether the file gives free pages back in steps: PRAGMA auto_vacuum = INCREMENTAL."""
    with _failing("the database cannot be looked at"), closing(_open(file)) as connection:
        return bool(connection.execute("PRAGMA auto_vacuum").fetchone()[0] == INCREMENTAL)


def vacuum(file: Path, progress: Progress) -> None:
    """Give free space back: in short steps where the file allows that. Otherwise rewrite the file
    in a form that allows steps from then on, while no other process can write.
    """
    _, _, free = free_pages(file)
    with _failing("the database cannot be vacuumed"), closing(_open(file)) as connection:
        if not gives_back(file):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
        left = free
        while left := min(left, connection.execute("PRAGMA freelist_count").fetchone()[0]):
            began = time.monotonic()
            connection.execute("BEGIN IMMEDIATE")
            cut(connection.execute, min(left, STEP))
            connection.execute("COMMIT")
            progress(free - left, free)
            left = max(left - STEP, 0)
            time.sleep(time.monotonic() - began)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, isolation_level=None, timeout=_WAIT)


def _copy(reader: sqlite3.Connection, writer: sqlite3.Connection, progress: Progress) -> None:
    # One transaction for the whole copy: otherwise each write of a server would restart it.
    reader.execute("BEGIN")
    reader.execute("SELECT 1 FROM sqlite_master").fetchone()

    def look(_: int, left: int, pages: int) -> None:
        progress(pages - left, pages)
        time.sleep(_PAUSE)

    writer.execute("PRAGMA synchronous = OFF")  # It is synced once, as a whole.
    reader.backup(writer, pages=_PAGES, progress=look)
    reader.execute("ROLLBACK")


def _draft(target: Path) -> Path:
    if not target.parent.is_dir():
        raise BackupRefused(f"there is no folder {target.parent}: make it first")
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    make_file(draft)
    return draft


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quoted(file: Path) -> str:
    return str(file.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except BackupRefused:
        raise
    except (OSError, sqlite3.Error) as error:
        raise BackupRefused(f"{what}: {error}") from error
