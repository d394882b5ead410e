"""What `policyd doctor` looks at: the machine, the files, the database, the spool of a server."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from policyd.command import machine
from policyd.command.config_checks import Check
from policyd.command.database_url import sqlite_file
from policyd.command.doctor import Doubt
from policyd.decision_log.spool import SpoolReader
from policyd.errors import SettingsError, StoreUnavailable
from policyd.keys import api_key
from policyd.server.config_checks import database
from policyd.settings import ServerSettings
from policyd.store import Store

_OLD = 60.0
"""Seconds after which an entry of the log should have been shipped."""


def checks(settings: ServerSettings, key: str) -> Iterator[Check]:
    """What to look at, each thing after those that it needs. `key` is an API key that should be in
    force; "": none is given."""
    yield from machine.listening(settings.listeners, "policyd serve")
    yield machine.ports(settings.listeners)
    yield machine.open_files(1 if settings.http is None else 2)
    yield from _files(settings)
    yield Check("--database-url", lambda: _database(settings))
    yield Check("clock", lambda: _clock(settings))
    yield Check(
        f"--spool {settings.spool}",
        lambda: machine.room(settings.spool, "--spool", settings.spool_limit),
    )
    yield Check("workers and gateways", lambda: _running(settings))
    yield Check("log entries that wait", lambda: _waiting(settings))
    if key:
        yield Check("API key", lambda: _key(settings, key))


def _files(settings: ServerSettings) -> Iterator[Check]:
    token = settings.admin_token_file
    secrets: Mapping[str, Path | None] = {
        "--admin-token-file": token if token.exists() else None,
        "--caller-token-file": settings.caller_token_file,
        "--local-token-file": settings.local_token_file,
        "--tls-key": settings.tls_key,
    }
    yield from machine.secrets(secrets)
    certificates = {"--tls-cert": settings.tls_cert, "--tls-client-ca": settings.tls_client_ca}
    yield from machine.certificates(certificates)


def _database(settings: ServerSettings) -> str:
    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        raise SettingsError(
            f"there is no {file}: correct it, or start policyd serve, which makes it"
        )
    return database(settings)


@contextmanager
def _store(settings: ServerSettings) -> Iterator[Store]:
    """The store, for a check of something else: the database itself has a check of its own. Raises
    StoreUnavailable."""
    store = Store(settings.database_url, settings.database_timeout)
    try:
        yield store
    except StoreUnavailable:
        raise StoreUnavailable("this is not known, as the database cannot be used") from None
    finally:
        store.close()


def _clock(settings: ServerSettings) -> str:
    with _store(settings) as store:
        asked = datetime.now(UTC)
        moment = store.time()
        answered = datetime.now(UTC)
    # The smallest that is possible, as the database read its clock at some moment between the two.
    offset = (min(max(moment, asked), answered) - moment).total_seconds()
    told = f"{offset:+.3f} s from the database's"
    if abs(offset) > settings.max_clock_skew:
        return Doubt(
            f"{told}, more than --max-clock-skew: have both machines follow a time server "
            "(timedatectl set-ntp true)"
        )
    return told


def _running(settings: ServerSettings) -> str:
    with _store(settings) as store:
        running = store.workers.list()
    gateways = sum(one.is_gateway for one in running)
    newest = max((one.revision for one in running), default=0)
    behind = sum(one.revision < newest for one in running)
    told = f"{len(running) - gateways} workers, and {gateways} gateways that decide by themselves"
    return f"{told}; {behind} are not at revision {newest} yet" if behind else told


def _waiting(settings: ServerSettings) -> str:
    if not settings.spool.is_dir():
        return "there is no spool yet"
    reader = SpoolReader(settings.spool)
    try:
        with suppress(FileNotFoundError), _store(settings) as store:
            spool = (settings.spool / "identity").read_text("ascii", "replace")
            reader.resume(store.positions.read(spool))
        size, oldest = reader.waiting()
    finally:
        reader.close()
    age = max(time.time() - oldest, 0)
    if size and age > _OLD:
        return Doubt(
            f"{size} bytes, the oldest for {age:.0f} s: they are shipped while policyd serve runs "
            "and the database takes them; its log says why, where it does not"
        )
    return f"{size} bytes"


def _key(settings: ServerSettings, key: str) -> str:
    with _store(settings) as store:
        found = store.keys.in_force(api_key.digest(key))
    if found is None:
        raise SettingsError(
            "it is not in force in this database: see policyd keys list --revoked, or make another "
            "(policyd keys create NAME)"
        )
    return f"it is in force, as {found.key_id}"
