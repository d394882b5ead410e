"""What `policyd serve` needs of its surroundings, checked without starting anything."""

import os
from collections.abc import Iterator
from pathlib import Path

from policyd.command.config_checks import Check, certificate, free
from policyd.command.database_url import sqlite_file
from policyd.command.tls_files import check_authorities
from policyd.decision_log import spool
from policyd.errors import SettingsError
from policyd.keys import tokens
from policyd.settings import ServerSettings


def files(settings: ServerSettings) -> Iterator[Check]:
    """The files that a worker reads at its start."""
    yield from certificate(settings.tls_cert, settings.tls_key)
    if authority := settings.tls_client_ca:
        yield Check(f"--tls-client-ca {authority}", lambda: _authorities(authority))
    if token := settings.caller_token_file:
        yield Check(f"--caller-token-file {token}", lambda: _token(token, "--caller-token-file"))
    if local := settings.local_token_file:
        yield Check(f"--local-token-file {local}", lambda: _token(local, "--local-token-file"))
    yield Check(
        f"--admin-token-file {settings.admin_token_file}",
        lambda: _admin_token(settings.admin_token_file),
    )


def _authorities(path: Path) -> str:
    check_authorities(path, "--tls-client-ca")
    return "it holds certificates"


def _token(path: Path, flag: str) -> str:
    tokens.load(path, flag)
    return "it holds a token that only its owner can read"


def _admin_token(path: Path) -> str:
    if path.exists():
        return _token(path, "--admin-token-file")
    _can_make(path, "--admin-token-file")
    return "policyd makes it at its start"


def surroundings(settings: ServerSettings, *, is_running: bool) -> Iterator[Check]:
    """Ports, folders and the database. `is_running`: policyd itself holds the ports already."""
    if not is_running:
        yield from free(settings.listeners, "policyd")
    yield Check(f"--spool {settings.spool}", lambda: _spool(settings.spool))
    yield Check("--database-url", lambda: database(settings))


def _spool(folder: Path) -> str:
    if not folder.exists():
        _can_make(folder, "--spool")
        return "policyd makes it at its start"
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"--spool {folder} cannot be written to: give it to policyd's user")
    return "it can be written to"


def _can_make(path: Path, flag: str) -> None:
    """Raises SettingsError where the file or folder cannot be made."""
    there = next(one for one in path.absolute().parents if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(
            f"{flag} {path} does not exist and cannot be made in {there}: make it, or give {flag} "
            "another path"
        )


def database(settings: ServerSettings) -> str:
    """Whether the database can be used, in words. Raises SettingsError and StoreUnavailable."""
    # Imported late: the supervisor uses this module for its files, and loads no SQL.
    from policyd.store import Store

    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        if not file.parent.is_dir():
            raise SettingsError(
                f"--database-url names {file}, and there is no folder {file.parent}: make it, or "
                "name another file"
            )
        _can_make(file, "--database-url")
        return f"policyd makes {file} at its start"
    store = Store(settings.database_url, settings.database_timeout)
    try:
        store.check()
        form = store.form()
        if form.revision is None:
            return "it is empty, and policyd makes its tables at its start"
        if not form.is_behind:
            form.check()
        _check_spool_of(settings.spool, store.identity())
        return "it can be used" + (", after its migration" if form.is_behind else "")
    finally:
        store.close()


def _check_spool_of(folder: Path, identity: str) -> None:
    known = spool.known_database(folder) if folder.is_dir() else None
    if known not in (None, identity) and spool.left(folder):
        raise SettingsError(
            f"--spool {folder} holds entries of another database, which does not have them yet: "
            "run policyd with that database, or give --spool another folder"
        )
