"""Files and folders that only their owner may read and write, from the first byte on.

They hold keys' settings, end users' names and tokens, so their mode does not depend on the umask.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)

UMASK = 0o077
"""The umask that the commands set, for files that SQLite or other libraries make."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The system's errors for a disk without room for a file."""
_FILE = 0o600
_FOLDER = 0o700


def make_folder(folder: Path) -> None:
    """Make the folder, and those above it, unless they exist. Raises OSError."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        # One at a time, as mkdir() gives its mode to no parents.
        one.mkdir(mode=_FOLDER, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder))


def make_file(path: Path) -> None:
    """Make the file, empty, unless it exists. A failure shows when the file is used."""
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE))


def close_to_others(path: Path) -> None:
    """Take away the rights of other users to a file, if it exists, and log that."""
    try:
        found = path.stat().st_mode
    except OSError:
        return
    mode = stat.S_IMODE(found)
    if not stat.S_ISREG(found) or not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return
    try:
        path.chmod(_FILE)
    except OSError as error:
        _log.warning(
            "%s is open to others (%04o), which cannot be changed (%s): chmod 600 %s as its owner",
            *(path, mode, error.strerror, path),
        )
    else:
        _log.warning("%s was open to others (%04o) and is 0600 now", path, mode)


def warn_of_open_folders(folders: Iterable[Path]) -> None:
    """Log which of the folders every user of this machine may list or write to.

    They stay as they are, as other programs may have a reason to use them. A folder that is mounted
    read-only, as an orchestrator mounts secrets, is the orchestrator's.
    """
    for folder in sorted({one.absolute() for one in folders}):
        with suppress(OSError):
            mode = stat.S_IMODE(folder.stat().st_mode)
            is_fixed = os.statvfs(folder).f_flag & os.ST_RDONLY
            if mode & (stat.S_IROTH | stat.S_IWOTH) and not is_fixed:
                _log.warning(
                    "every user of this machine may %s %s (%04o), where policyd keeps its data: "
                    "chmod 700 it, or give policyd a folder of its own",
                    *("write to" if mode & stat.S_IWOTH else "list", folder, mode),
                )
