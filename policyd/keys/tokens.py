"""Bearer tokens in files that only their owner may read. The first start makes AdminService's."""

import os
import secrets
import stat
from pathlib import Path

from policyd.command.private_files import NO_ROOM, make_folder
from policyd.errors import NoRoom, SettingsError


def load_or_create(path: Path) -> str:
    """The token in `path`. A file that is missing is made, with a new token.

    Raises SettingsError; NoRoom where the disk is full.
    """
    try:
        if not path.exists():  # A file that is there needs no room.
            _create(path)
    except FileExistsError:
        pass
    except OSError as error:
        kind = NoRoom if error.errno in NO_ROOM else SettingsError
        raise kind(f"--admin-token-file {path} cannot be made: {error.strerror}") from None
    return load(path, "--admin-token-file")


def load(path: Path, flag: str) -> str:
    """The token in `path`. Raises SettingsError, also where other users may read the file."""
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{flag} {path} cannot be read: it is not text") from None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise SettingsError(f"{flag} {path} is open to others: chmod 600 {path}")
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise SettingsError(
            f"{flag} {path} holds no token of 16 or more characters: write one, or remove the file"
        )
    return token


def _create(path: Path) -> None:
    make_folder(path.parent)
    # Written under another name first, so that a process that starts now reads no half of it.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        os.link(draft, path)
    finally:
        draft.unlink()
