"""The file of a SQLite database, which others may delete or replace while policyd has it open.

A connection stays with the file that it has opened, even when the name stands for another file:
what it then commits goes into a database that no other program can open. So policyd checks the name
before it uses a connection and after each commit, and throws away a connection to another file.

SQLite keeps changes in FILE-wal until they are in FILE. A FILE-wal that stays behind when FILE is
replaced would be read into the new file and damage it. So policyd puts it aside, and back if the
file that it belongs to comes back.

A program may also write to the file itself, as `cp` does; then the name and the inode stay. That
shows in SQLite's own counts of its writes: see checkpoints.py.
"""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import InvalidatePoolError

from policyd.command.private_files import close_to_others
from policyd.errors import StoreUnavailable
from policyd.store import checkpoints
from policyd.store.checkpoints import Checkpoints, Counts, Written

_log = logging.getLogger(__name__)

_CONFIRM = "policyd_confirm"
_BESIDE = ("-wal", "-shm", "-journal")
"""The endings of SQLite's files beside a database. SQLite gives them the database's mode."""
_ASIDE = ("-wal", "-shm")
_PINS = 4
"""Of how many files the inode is held, so that the system gives it to no other file."""
_O_PATH: int = getattr(os, "O_PATH", 0)
"""Opens a file only to hold its inode, where the system can. Closing such a descriptor drops none
of SQLite's locks, as closing any other descriptor of the same file would."""
_Inode = tuple[int, int] | None


class _Files(NamedTuple):
    """The inodes that a database's names stand for. None: there is no such file."""

    main: _Inode
    wal: _Inode
    shm: _Inode


class DatabaseFile:
    """The file at `path`, for the connections of one engine. Threads may share it."""

    def __init__(self, path: Path) -> None:
        # Absolute, as the process may change its working directory.
        self._path = path.absolute()
        self._known: _Files | None = None
        """The files that the newest connection has opened."""
        self._told: _Files | None = None
        self._pins: dict[_Inode, int] = {}
        self._checkpoints = Checkpoints()
        self._spoilt: _Inode = None
        """The file that another program has written to."""
        self._lock = threading.Lock()
        self._close_to_others()

    def guard(self, engine: sa.Engine) -> None:
        """Have the engine use no connection to another file than the name stands for."""
        event.listen(engine, "do_connect", self._before_opening)
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "checkout", self._look)
        event.listen(engine, "engine_disposed", self._let_go)

    def _before_opening(
        self, _: object, record: Any, where: list[Any], how: dict[str, Any]
    ) -> None:
        if how.get("uri"):
            return  # The operator's URL says how the file is opened.
        found = self.found()
        real = os.path.realpath(self._path)
        if not os.path.lexists(real) and os.path.isdir(os.path.dirname(real)):
            raise StoreUnavailable(
                f"there is no database {self._path}: it was moved or deleted. Put it back, or "
                "restore a backup (policyd db restore); a restart of policyd would begin a new one"
            )
        if found.main is not None and found.main == self._spoilt:
            raise self.spoilt()
        if self._known is not None and self._known.main != found.main:
            self._sort_out(self._known, found)
        self._close_to_others()
        record.info[_CONFIRM] = found.main
        # Otherwise SQLite would make a new file where this one has just gone.
        where[0] = f"file:{quote(str(where[0]))}?mode=rw"
        how["uri"] = True

    def _opened(self, connection: Any, record: Any) -> None:
        if _CONFIRM not in record.info:
            return
        # SQLite opens the files beside it at the first read.
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        opened = self.found()
        if opened.main != record.info[_CONFIRM]:
            raise StoreUnavailable(f"{self._path} was replaced while it was opened: try again")
        connected = _Connected(self, opened, checkpoints.find_descriptor(opened.shm))
        record.info[_CONFIRM] = connected
        with self._lock:
            if self._known != opened:
                self._checkpoints.begin(self._written(), connected.counts())
            self._known = opened
            self._pin(opened.main)

    def _look(self, _: object, record: Any, __: object) -> None:
        connected = record.info.get(_CONFIRM)
        if not isinstance(connected, _Connected):
            return
        if not connected.is_current():
            self._tell(self.found())
            raise InvalidatePoolError
        if self.is_spoilt(connected):
            raise self.spoilt()

    def is_spoilt(self, connected: "_Connected") -> bool:
        """Whether another program has written to the file while SQLite has it open."""
        with self._lock:
            before = connected.counts()
            written = self._written()
            if not self._checkpoints.explain(before, written, connected.counts()):
                self._spoilt = connected.opened.main
            return self._spoilt == connected.opened.main

    def spoilt(self) -> StoreUnavailable:
        """The error for a file that another program has written to."""
        return StoreUnavailable(
            f"another program has written to {self._path} while policyd has it open (a backup "
            f"copied into it?), and {self._path}-wal does not fit it any more: stop policyd, put "
            "the backup in place once more (policyd db restore), and start it again"
        )

    def _written(self) -> Written:
        try:
            found = os.stat(self._path)
        except OSError:
            return Written(0, 0)  # It has just gone. The next check finds that.
        return Written(found.st_mtime_ns, found.st_size)

    def _tell(self, found: _Files) -> None:
        with self._lock:
            is_news, self._told = self._told != found, found
        if is_news:
            _log.warning(
                "%s %s: policyd opens it anew",
                *(self._path, "is another file than before" if found.main else "is gone"),
            )

    def found(self) -> _Files:
        """The files that the names stand for now."""
        real = os.path.realpath(self._path)  # SQLite puts its other files beside that.
        return _Files(_inode(real), _inode(real + "-wal"), _inode(real + "-shm"))

    def _sort_out(self, known: _Files, found: _Files) -> None:
        """Put aside the files that belong to the previous database, and put back those of this one
        that were put aside earlier."""
        real = os.path.realpath(self._path)
        with suppress(OSError), _one_at_a_time(os.path.dirname(real)):
            for ending, inode in zip(_ASIDE, known[1:], strict=True):
                # Another process may have done so already: then this file is the new database's.
                if inode is not None and _inode(real + ending) == inode:
                    aside = _aside(real + ending, known.main)
                    os.rename(real + ending, aside)
                    _log.warning(
                        "%s belongs to the file that %s was before: it is now %s. It goes back to "
                        "its place with that file; delete it if you do not want that one again",
                        *(real + ending, real, aside),
                    )
            for ending in _ASIDE if found.main in self._pins else ():
                aside = _aside(real + ending, found.main)
                if os.path.exists(aside) and not os.path.exists(real + ending):
                    os.rename(aside, real + ending)

    def _let_go(self, _: object) -> None:
        with self._lock:
            while self._pins:
                os.close(self._pins.popitem()[1])

    def _pin(self, main: _Inode) -> None:
        """Hold the inode, so that the same number later means the same file."""
        if main in self._pins or not _O_PATH:
            return
        if len(self._pins) >= _PINS:
            os.close(self._pins.pop(next(iter(self._pins))))
        with suppress(OSError):
            self._pins[main] = os.open(self._path, _O_PATH | os.O_CLOEXEC)

    def _close_to_others(self) -> None:
        real = os.path.realpath(self._path)
        for ending in ("", *_BESIDE):
            close_to_others(Path(real + ending))


class _Connected(NamedTuple):
    """The files that a connection has opened."""

    file: DatabaseFile
    opened: _Files
    descriptor: int | None
    """SQLite's own descriptor of FILE-shm."""

    def is_current(self) -> bool:
        """Whether the names still stand for these files."""
        return self.file.found() == self.opened

    def counts(self) -> Counts | None:
        """SQLite's counts of its checkpoints, as they are now."""
        return checkpoints.counts(self.descriptor, self.opened.shm)


def confirm(connection: sa.Connection) -> None:
    """Check, after a commit, that it went into the database that the name stands for. Raises
    StoreUnavailable otherwise."""
    connected = connection.info.get(_CONFIRM)
    if not isinstance(connected, _Connected):
        return
    if not connected.is_current():
        raise StoreUnavailable(
            "the database was replaced or deleted while it was written to: the change is not in it"
        )
    if connected.file.is_spoilt(connected):
        raise connected.file.spoilt()


def _aside(path: str, main: _Inode) -> str:
    return f"{path}.of-{main[1] if main else 0}"


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
