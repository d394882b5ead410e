"""The file of a SQLite database, which others may delete or replace while policyd has it open.

A connection stays with the file that it has opened, whatever its name stands for later: what is
committed there is in no database that anybody finds. So before a connection is used, and after each
commit, the name is looked at; and a connection to another file than that is thrown away.

SQLite keeps changes in FILE-wal until they are in FILE. One that stays behind when FILE is replaced
would be read into the new one, and damage it: it is put aside.
"""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import InvalidatePoolError

from policyd.errors import StoreUnavailable
from policyd.private_files import close_to_others

_log = logging.getLogger(__name__)

_CONFIRM = "policyd_confirm"
_BESIDE = ("-wal", "-shm", "-journal")
"""Of SQLite's files beside a database, which have its mode when they are made."""
_STALE = ".stale"
"""What is put behind the name of a file that is put aside."""
_Inode = tuple[int, int] | None


class _Files(NamedTuple):
    """What a database's names stand for: None where there is no such file."""

    main: _Inode
    wal: _Inode
    shm: _Inode


class DatabaseFile:
    """The file at `path`, for the connections of one engine. Threads may share it."""

    def __init__(self, path: Path) -> None:
        # From here on, wherever the process goes.
        self._path = path.absolute()
        self._known: _Files | None = None
        """As the newest connection found them."""
        self._told: _Files | None = None
        self._lock = threading.Lock()
        self._close_to_others()

    def guard(self, engine: sa.Engine) -> None:
        """Let no connection of this engine be used that is to another file than the name's."""
        event.listen(engine, "do_connect", self._before_opening)
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "checkout", self._look)

    def _before_opening(
        self, _: object, record: Any, where: list[Any], how: dict[str, Any]
    ) -> None:
        if how.get("uri"):
            return  # Its operator says what file that is.
        found = self._found()
        if found.main is None and self._path.parent.is_dir():
            raise StoreUnavailable(
                f"there is no database {self._path}: it was moved or deleted. Put it back, or "
                "restore a backup (policyd db restore); a restart of policyd would begin a new one"
            )
        if self._known is not None and self._known.main != found.main:
            self._put_aside(self._known)
        self._close_to_others()
        record.info[_CONFIRM] = found.main
        # SQLite would make a file that has gone meanwhile.
        where[0] = f"file:{quote(str(where[0]))}?mode=rw"
        how["uri"] = True

    def _opened(self, connection: Any, record: Any) -> None:
        if _CONFIRM not in record.info:
            return
        # SQLite opens what stands beside the file when it reads first.
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        opened = self._found()
        if opened.main != record.info[_CONFIRM]:
            raise StoreUnavailable(f"{self._path} was replaced while it was opened: try again")
        record.info[_CONFIRM] = _Connected(self, opened)
        with self._lock:
            self._known = opened

    def _look(self, _: object, record: Any, __: object) -> None:
        connected = record.info.get(_CONFIRM)
        if isinstance(connected, _Connected) and not connected.is_current():
            self._tell(self._found())
            raise InvalidatePoolError

    def _tell(self, found: _Files) -> None:
        with self._lock:
            is_news, self._told = self._told != found, found
        if is_news:
            _log.warning(
                "%s %s: policyd opens it anew",
                *(self._path, "is another file than before" if found.main else "is gone"),
            )

    def _found(self) -> _Files:
        real = os.path.realpath(self._path)  # SQLite puts its other files beside that.
        return _Files(_inode(real), _inode(real + "-wal"), _inode(real + "-shm"))

    def _put_aside(self, known: _Files) -> None:
        """Rename what belongs to a file that is no longer here."""
        real = os.path.realpath(self._path)
        with suppress(OSError), _one_at_a_time(os.path.dirname(real)):
            for ending, inode in (("-wal", known.wal), ("-shm", known.shm)):
                # Another process may have done so, and what is there now is the new file's.
                if inode is not None and _inode(real + ending) == inode:
                    os.rename(real + ending, real + ending + _STALE)
                    _log.warning(
                        "%s belongs to the file that %s was before: it is now %s, to be deleted "
                        "unless you want to have that file back",
                        *(real + ending, real, real + ending + _STALE),
                    )

    def _close_to_others(self) -> None:
        real = os.path.realpath(self._path)
        for ending in ("", *_BESIDE):
            close_to_others(Path(real + ending))


class _Connected(NamedTuple):
    """What a connection has opened."""

    file: DatabaseFile
    opened: _Files

    def is_current(self) -> bool:
        """Whether the names still stand for it."""
        return self.file._found() == self.opened


def confirm(connection: sa.Connection) -> None:
    """Call it after a commit. Raises StoreUnavailable where that went to a file that has no name,
    or another one's place."""
    connected: Mapping[Any, Any] = connection.info
    found = connected.get(_CONFIRM)
    if isinstance(found, _Connected) and not found.is_current():
        raise StoreUnavailable(
            f"{found.file._path} was replaced or deleted while it was written to: the change is "
            "not in the database"
        )


def _inode(path: str) -> _Inode:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
