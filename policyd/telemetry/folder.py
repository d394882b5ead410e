"""The folder by which the processes of one server share their metrics, while it runs.

Each process writes a few small files that prometheus-client maps into memory, and the supervisor
reads all of them. So they should not be on a disk that may be full or slow: the folder is made
where the system keeps files in memory, if it has such a file system.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from policyd.errors import SettingsError

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "policyd-metrics-"
_LOCK = "lock"
"""A file that the supervisor has locked while it runs."""
_IN_MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of its own is made there

_ROOM = 16 * 2**20
"""Bytes that should be free: each process needs half a mebibyte."""


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """Make the folder, for this process and those that it starts, and remove it at the end.

    Call it before anything imports prometheus_client, which looks for it once. Raises
    SettingsError.
    """
    place = _place()
    _remove_left(place)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        held = (folder / _LOCK).open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("locked")
        held.flush()
    except OSError as error:
        raise SettingsError(
            f"--metrics needs a folder for temporary files, and there is none: {error.strerror}. "
            "Mount a small tmpfs at /tmp, or set TMPDIR"
        ) from None
    os.environ[_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop(_VARIABLE, None)
        shutil.rmtree(folder, ignore_errors=True)
        held.close()


def _remove_left(place: Path) -> None:
    """Remove the folders of servers that were killed: nothing holds their locks any more."""
    for folder in place.glob(f"{_PREFIX}*"):
        # On an error, the folder is in use, another user's, or gone.
        with suppress(OSError), open(folder / _LOCK, "rb", opener=_without_waiting) as lock:
            if not _is_ours(folder, lock.fileno()):
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.read(1):  # Otherwise another server is just making it.
                shutil.rmtree(folder, ignore_errors=True)


def _without_waiting(path: str, flags: int) -> int:
    # Any user may make a folder of this name, with a pipe in it that opening would wait for.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _is_ours(folder: Path, lock: int) -> bool:
    of_folder, of_lock = folder.lstat(), os.fstat(lock)
    is_own = os.geteuid() == of_folder.st_uid == of_lock.st_uid
    return is_own and stat.S_ISDIR(of_folder.st_mode) and stat.S_ISREG(of_lock.st_mode)


def _place() -> Path:
    """Where the folder is made: in memory, or where temporary files are."""
    # The system kills a process that writes to mapped memory without room for it.
    has_room = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free >= _ROOM
    is_usable = has_room and os.access(_IN_MEMORY, os.W_OK | os.X_OK)
    return _IN_MEMORY if is_usable else Path(tempfile.gettempdir())
