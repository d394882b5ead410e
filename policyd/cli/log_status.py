"""`policyd logs status`: the state of the decision log, its database and this machine's spool."""

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from policyd.cli import options
from policyd.cli.administration import Administrator, Status
from policyd.cli.options import OPTIONS, as_json, option
from policyd.cli.place import Place, administered
from policyd.decision_log.spool import SpoolReader
from policyd.errors import SettingsError, StoreUnavailable
from policyd.keys.snapshot import SnapshotFile
from policyd.settings import ServerSettings, spool_folder


@click.command()
@option(
    "--snapshot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="As the server on this machine has it.",
)
@OPTIONS.setting(ServerSettings, "spool", help="As the server on this machine has it.")
@as_json
@administered
def status(place: Place, as_json: bool, snapshot: Path | None, spool: Path | None) -> None:
    """Show how many decisions the log holds, since when, and how many were never logged.

    Also shown: how many requests had no API key in force, which are counted and not logged; by how
    many seconds the clock of the worker that is furthest off is ahead of the database's; how many
    workers of policyd run, and how many processes of gateways that decide by themselves; why the
    database takes no changes, if it takes none; and, if retention stands still, why, and how many
    decisions wait for it.

    If a server runs on this machine, also shown are the revision of its snapshot of the settings
    and when it last followed the database; how many bytes wait in its spool for the database, and
    for how many seconds the oldest has waited. While the database is away, only these and the cause
    are shown, and the exit status is 1. Only the database knows how much of the spool it has
    already, so without it, or with --server, the numbers are the most that may wait.
    """
    folder = spool or (None if place.server else spool_folder(place.database_url))
    kept = _snapshot(snapshot or (folder / "snapshot" if folder and not place.server else None))
    try:
        with place.opened() as administrator:
            found = administrator.status()
            waiting = _waiting(folder, administrator)
    except StoreUnavailable as error:
        _print({"database_problem": str(error)} | _waiting(folder) | kept, as_json=as_json)
        raise
    last = ("database_problem", "retention_standstill", "retention_waiting")
    after = {name: found.pop(name) for name in last}
    _print(found | waiting | kept | after, as_json=as_json)


def _print(values: Status, *, as_json: bool) -> None:
    if as_json:
        options.print_json(values)
        return
    for name, value in values.items():
        click.echo(f"{name:19} {'-' if value is None else value}")


def _waiting(folder: Path | None, administrator: Administrator | None = None) -> Status:
    """What waits in the spool at `folder`; nothing where that is None. Without an administrator,
    what the database has already counts, too."""
    if folder is None:
        return {}
    size, age = None, None
    # No server has started here yet, or the spool is another user's.
    with suppress(SettingsError, OSError):
        reader = SpoolReader(folder)
        try:
            if administrator is not None:
                reader.resume(administrator.shipped(reader.known_identity()))
            size, oldest = reader.waiting()
            age = round(max(time.time() - oldest, 0.0), 1) if size else None
        finally:
            reader.close()
    return {"spool_bytes": size, "spool_age": age}


def _snapshot(path: Path | None) -> Status:
    """What this machine's snapshot says, where there may be one."""
    if path is None:
        return {}
    head = SnapshotFile(path).head()
    if head is None:
        return {"snapshot_revision": None, "snapshot_followed": None}
    followed = datetime.fromtimestamp(head.followed_at, UTC).isoformat(timespec="milliseconds")
    return {"snapshot_revision": head.revision, "snapshot_followed": followed}
