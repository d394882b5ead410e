"""What a running demo tells the commands of its user about itself, in its data folder.

`demo.json` there is locked for as long as the demo runs. So a second demo on the same data notices
the first one, and a command knows whether the demo that wrote the file still runs: the system
releases the lock however the process ends. A command believes a file only where its own user owns
it, as the file names the database that keys are read from and written to.
"""

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from policyd.errors import SettingsError

FOLDERS = (Path("data"), Path("policyd-data"))
"""Where commands look for a running demo: the folders of `make run` and of `policyd demo`, in the
working directory."""
_NAME = "demo.json"
_MOST = 64 * 1024
"""Bytes of the file that are read, at most."""
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


class Demo(NamedTuple):
    """A running demo."""

    database_url: str
    admin: str
    """HOST:PORT of its AdminService."""
    admin_token_file: str


class Presence:
    """The file of a demo that runs on the data of one folder."""

    def __init__(self, file: int, path: Path) -> None:
        self._file = file
        self._path = path

    def tell(self, demo: Demo) -> None:
        """Let commands find the demo, now that it is ready. Raises SettingsError."""
        try:
            os.truncate(self._file, 0)
            os.pwrite(self._file, json.dumps(demo._asdict()).encode() + b"\n", 0)
        except OSError as problem:
            raise SettingsError(_unwritable(self._path, problem)) from None


@contextmanager
def claimed(data: Path) -> Iterator[Presence]:
    """Claim the `data` folder for this demo, in this block. Raises SettingsError, for example where
    another demo runs on it."""
    path = data / _NAME
    try:
        file = os.open(path, _OPEN, 0o600)
    except OSError as problem:
        raise SettingsError(_unwritable(path, problem)) from None
    try:
        _lock(file, data)
        os.truncate(file, 0)
        yield Presence(file, path)
    finally:
        # The file stays: a demo that had just opened it would otherwise lock a deleted file.
        os.close(file)


def _lock(file: int, data: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(
            f"another demo runs on the data in {data}: stop that one (Ctrl-C in its terminal), or "
            "give this one a folder of its own by --data, or by DATA= of make run"
        ) from None
    except OSError as problem:
        raise SettingsError(_unwritable(data / _NAME, problem)) from None


def _unwritable(path: Path, problem: OSError) -> str:
    return f"{path} cannot be written ({problem.strerror}): give another folder by --data"


def is_found(data: Path) -> bool:
    """Whether commands that run in this working directory look in the `data` folder."""
    return any(data.absolute() == folder.absolute() for folder in FOLDERS)


def running(folders: Iterable[Path] = FOLDERS) -> Demo | None:
    """The demo that runs on the data of one of the folders, if its file is to be believed."""
    return next(filter(None, map(_read, folders)), None)


def _read(folder: Path) -> Demo | None:
    try:
        file = os.open(folder / _NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _demo(os.read(file, _MOST)) if _is_ours(file) and _is_locked(file) else None
    finally:
        os.close(file)


def _is_ours(file: int) -> bool:
    found = os.fstat(file)
    writable = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not writable


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _demo(text: bytes) -> Demo | None:
    try:
        values: dict[str, Any] = json.loads(text)
        demo = Demo(*(values[name] for name in Demo._fields))
    except (ValueError, KeyError, TypeError):
        return None  # The demo is not ready yet.
    return demo if all(isinstance(value, str) for value in demo) else None
