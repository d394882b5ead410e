"""What to do about SQLite's errors, by their kind: SQLite's messages name no file and no fix."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path


def advice(code: int, file: Path) -> str:
    """What to do about SQLite's error `code`, in words that follow its message; "": not known."""
    found = _ADVICE.get(code & 0xFF)  # The other bits say where in SQLite the error arose.
    return found(file) if found else ""


def _locked(file: Path) -> str:
    return (
        "another program holds its lock, such as a backup or a shell with an open transaction: end "
        f"that one (fuser {file} lists who has it open), or try again later"
    )


def _read_only(file: Path) -> str:
    return (
        f"make the file and its folder writable for the user {os.geteuid()}, which this program "
        f"runs as, and check that {file.parent} is not mounted read-only"
    )


def _full(file: Path) -> str:
    return f"there is no room left for it: make some in {file.parent}, or raise the quota"


def _failing(file: Path) -> str:
    return (
        f"the disk or the file system of {file.parent} fails: look at the system's log (dmesg), "
        "and keep the file on a local disk, as SQLite cannot work on network file systems"
    )


def _not_opened(file: Path) -> str:
    if file.is_dir():
        return "it is a folder: name a file in it"
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}: make it, or name another file"
    return (
        f"let the user {os.geteuid()}, which this program runs as, read and write the file and its "
        f"folder {file.parent}, and see that more files may be open (ulimit -n)"
    )


_ADVICE: dict[int, Callable[[Path], str]] = {
    sqlite3.SQLITE_BUSY: _locked,
    sqlite3.SQLITE_LOCKED: _locked,
    sqlite3.SQLITE_READONLY: _read_only,
    sqlite3.SQLITE_PERM: _read_only,
    sqlite3.SQLITE_AUTH: _read_only,
    sqlite3.SQLITE_FULL: _full,
    sqlite3.SQLITE_CANTOPEN: _not_opened,
    sqlite3.SQLITE_IOERR: _failing,
    sqlite3.SQLITE_PROTOCOL: _failing,
    sqlite3.SQLITE_NOLFS: _failing,
}
