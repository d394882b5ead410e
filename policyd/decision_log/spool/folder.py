"""The spool's folder: made for one database, and what writer and reader both do with its files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from policyd.command.private_files import NO_ROOM, make_file, make_folder
from policyd.decision_log.spool.system import System
from policyd.errors import NoRoom, SettingsError

_GATEWAY = "gateway"
"""The file that marks the folder of a gateway that decides by itself, and is locked while it runs.
"""
DIGITS = 20
"""Digits of the number in a file of losses: always this many, so it is overwritten in place."""


def prepare(folder: Path, identity: str) -> None:
    """Make the folder, and mark it as that of the database `identity`. Raises SettingsError."""
    make(folder)
    mark = folder / "database"
    try:
        known = known_database(folder)
        if known == identity:
            return  # Nothing is written, so that a start needs no room on the disk.
        if known:
            _check_unused(folder)
        draft = folder / f"database.{os.getpid()}.tmp"
        make_file(draft)
        draft.write_text(identity, encoding="utf-8")
        draft.replace(mark)
    except OSError as error:
        raise unusable(folder, error) from None


def claim(folder: Path) -> None:
    """Make the folder, and mark it as a gateway's. Raises SettingsError, also where it is that of a
    policyd, whose entries reach its database by another way."""
    make(folder)
    check_gateways(folder)
    try:
        os.close(os.open(folder / _GATEWAY, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise unusable(folder, error) from None


def check_gateways(folder: Path) -> None:
    """Raises SettingsError where the folder is a policyd's, for a gateway."""
    if (folder / "database").exists() and not (folder / _GATEWAY).exists():
        raise SettingsError(
            f"--spool {folder} is the spool of a policyd: give the gateway a folder of its own"
        )


def check_own(folder: Path) -> None:
    """Raises SettingsError where the folder is a gateway's, for a policyd."""
    if (folder / _GATEWAY).exists():
        raise SettingsError(
            f"--spool {folder} is the spool of a gateway that decides by itself: give policyd a "
            "folder of its own"
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a gateway's folder, which all its processes may use, for this gateway alone. Raises
    SettingsError."""
    claim(folder)
    try:
        descriptor = os.open(folder / _GATEWAY, os.O_WRONLY)
    except OSError as error:
        raise unusable(folder, error) from None
    try:
        if not lock(System(), descriptor):
            raise SettingsError(
                f"--spool {folder} is in use by another policyd-gateway: give each one a folder of "
                "its own"
            )
        yield
    finally:
        os.close(descriptor)


def make(folder: Path) -> None:
    """Make the folder. Raises SettingsError, which is NoRoom where the disk is full."""
    try:
        make_folder(folder)
    except OSError as error:
        raise unusable(folder, error) from None


def known_database(folder: Path) -> str | None:
    """The identity of the database that the folder's entries belong to; None if not known yet.

    Raises SettingsError.
    """
    try:
        # An empty file is left where the disk was full.
        return (folder / "database").read_text(encoding="utf-8") or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(folder, error) from None


def _check_unused(folder: Path) -> None:
    """Raises SettingsError where entries for another database wait here, or may be written soon."""
    if any(file.stat().st_size for file in folder.glob("*.jsonl")):
        raise SettingsError(
            f"--spool {folder} holds entries of another database, which that one does not have "
            "yet: run policyd with that database, or give --spool another folder"
        )
    descriptor = os.open(folder / "shipper.lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if not lock(System(), descriptor):
            raise SettingsError(
                f"--spool {folder} is in use by a policyd with another database: "
                "give --spool another folder"
            )
    finally:
        os.close(descriptor)


def unusable(folder: Path, error: OSError) -> SettingsError:
    """The error for a folder that policyd cannot start with."""
    if error.errno in NO_ROOM:
        return NoRoom(f"--spool {folder} cannot be made: {error.strerror}. Make room on its disk")
    return SettingsError(
        f"--spool {folder} cannot be used: {error.strerror}. Give it a folder that policyd may "
        "write to, on a local disk"
    )


def open_folder(folder: Path, system: System) -> int:
    """A descriptor of the folder. Raises SettingsError."""
    try:
        return system.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unusable(folder, error) from None


def lock(system: System, descriptor: int) -> bool:
    """Take the file's lock, unless another process has it."""
    try:
        system.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def segments(folder: int, system: System) -> list[tuple[str, int]]:
    """The names and sizes of the segments, by name."""
    found = []
    for name in sorted(system.listdir(folder)):
        if name.endswith(".jsonl"):
            with suppress(FileNotFoundError):
                found.append((name, system.stat(name, dir_fd=folder).st_size))
    return found
