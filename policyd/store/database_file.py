"""The file of a SQLite database, which others may delete or replace while policyd has it open.

A connection stays with the file that it has opened, whatever its name stands for later: what is
committed there is in no database that can be found. So before a connection is used, and after each
commit, the name is looked at; and a connection to another file than that is thrown away.

SQLite keeps changes in FILE-wal until they are in FILE. One that stays behind when FILE is replaced
would be read into the new one, and damage it: it is put aside, and put back with the file that it
belongs to.
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
"""Of SQLite's files beside a database, which have its mode when they are made."""
_ASIDE = ("-wal", "-shm")
_PINS = 4
"""Files whose inode is kept from being given to another file."""
_O_PATH: int = getattr(os, "O_PATH", 0)
"""To hold an inode by, where the system can. Closing it drops none of SQLite's locks, as closing
any other descriptor of the same file would."""
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
        self._pins: dict[_Inode, int] = {}
        self._checkpoints = Checkpoints()
        self._spoilt: _Inode = None
        """What another program has written to."""
        self._lock = threading.Lock()
        self._close_to_others()

    def guard(self, engine: sa.Engine) -> None:
        """Let no connection of this engine be used that is to another file than the name's."""
        event.listen(engine, "do_connect", self._before_opening)
        event.listen(engine, "connect", self._opened)
        event.listen(engine, "checkout", self._look)
        event.listen(engine, "engine_disposed", self._let_go)

    def _before_opening(
        self, _: object, record: Any, where: list[Any], how: dict[str, Any]
    ) -> None:
        if how.get("uri"):
            return  # Its operator says what file that is.
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
        # SQLite would make a file that has gone meanwhile.
        where[0] = f"file:{quote(str(where[0]))}?mode=rw"
        how["uri"] = True

    def _opened(self, connection: Any, record: Any) -> None:
        if _CONFIRM not in record.info:
            return
        # SQLite opens what stands beside the file when it reads first.
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
        """What is said of a file that another program has written to."""
        return StoreUnavailable(
            f"another program has written to {self._path} while policyd has it open (a backup "
            f"copied into it?), and {self._path}-wal does not fit it any more: stop policyd, put "
            "the backup in place once more (policyd db restore), and start it again"
        )

    def _written(self) -> Written:
        try:
            found = os.stat(self._path)
        except OSError:
            return Written(0, 0)  # It has just gone, which the next look tells.
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
        """What the names stand for now."""
        real = os.path.realpath(self._path)  # SQLite puts its other files beside that.
        return _Files(_inode(real), _inode(real + "-wal"), _inode(real + "-shm"))

    def _sort_out(self, known: _Files, found: _Files) -> None:
        """Rename what stands beside the file and belongs to the one that was here before; and give
        back to this one what was so renamed."""
        real = os.path.realpath(self._path)
        with suppress(OSError), _one_at_a_time(os.path.dirname(real)):
            for ending, inode in zip(_ASIDE, known[1:], strict=True):
                # Another process may have done so, and what is there now is the new file's.
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
        """Keep the inode, so that the same number later is the same file."""
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
    """What a connection has opened."""

    file: DatabaseFile
    opened: _Files
    descriptor: int | None
    """SQLite's own of FILE-shm."""

    def is_current(self) -> bool:
        """Whether the names still stand for it."""
        return self.file.found() == self.opened

    def counts(self) -> Counts | None:
        """What SQLite counts of its checkpoints."""
        return checkpoints.counts(self.descriptor, self.opened.shm)


def confirm(connection: sa.Connection) -> None:
    """Call it after a commit. Raises StoreUnavailable where that went to a file that has no name,
    or another one's place."""
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
