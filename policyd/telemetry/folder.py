"""The folder by which the processes of one server share their metrics, while it runs.

Each process writes a few small files that prometheus-client keeps in memory, and the supervisor
reads all of them. A file is mapped into memory, so it should be on no disk that may be full or
slow: the folder is made where the system keeps files in memory, if it has such a place.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policyd.errors import SettingsError

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_IN_MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of its own is made there

_ROOM = 16 * 2**20
"""Bytes that should be free: each process needs half a mebibyte."""


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """Make the folder, for this process and those that it starts; it is removed at the end.

    Call it before anything imports prometheus_client, which looks for it once. Raises
    SettingsError.
    """
    try:
        folder = tempfile.mkdtemp(prefix="policyd-metrics-", dir=_place())
    except OSError as error:
        raise SettingsError(
            f"--metrics needs a folder for temporary files, and there is none: {error.strerror}. "
            "Mount a small tmpfs at /tmp, or set TMPDIR"
        ) from None
    os.environ[_VARIABLE] = folder
    try:
        yield Path(folder)
    finally:
        os.environ.pop(_VARIABLE, None)
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path | None:
    """Where it is made. None: where temporary files are."""
    # A process is killed that finds no room for what it writes to memory.
    has_room = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free >= _ROOM
    return _IN_MEMORY if has_room and os.access(_IN_MEMORY, os.W_OK | os.X_OK) else None
