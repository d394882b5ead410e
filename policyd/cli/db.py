"""`policyd db`: the database as a whole: its form, backups, copies and size."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from policyd.cli import options
from policyd.cli.options import option
from policyd.errors import SettingsError, StoreUnavailable
from policyd.store import Store, migrations, sqlite_file, sqlite_files, upkeep
from policyd.store.copying import Copied
from policyd.store.upkeep import Figures

_MIB = 2**20
_RATE = 20 * _MIB
"""Bytes a second that a common disk writes at the least, when a file is rewritten."""


@click.group()
def db() -> None:
    """Look at the database, migrate it, back it up, copy it and shrink it."""


@db.command()
@options.common
def status(database_url: str, as_json: bool) -> None:
    """Show the database's form and size, what it holds and which servers use it.

    It changes nothing. Exits with 1 where this version cannot use the database as it is.
    """
    _require(database_url)
    found = upkeep.figures(database_url)
    shown = _shown(found)
    if as_json:
        options.print_json(shown)
    else:
        for name, value in shown.items():
            text = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"{name:18}{'-' if text in (None, '') else text}")
    found.form.check()


def _shown(found: Figures) -> dict[str, Any]:
    form = found.form
    values = asdict(found) | {
        "form": form.revision,
        "this_version": migrations.HEAD,
        "works_from": form.works_from or None,
        "closed": form.reason or None,
    }
    for name in ("oldest", "newest", "time"):
        at: datetime | None = values[name]
        values[name] = at.isoformat(timespec="milliseconds") if at else None
    first = ("name", "form", "this_version", "works_from", "closed", "pending")
    return {name: values.pop(name) for name in first} | values


@db.command()
@option("--dry-run", is_flag=True, help="Only say which migrations would run.")
@options.common
def migrate(database_url: str, as_json: bool, dry_run: bool) -> None:
    """Bring the database to this version's form; make it where there is none.

    Servers of the previous version go on, and can be started again. Back the database up first.
    On PostgreSQL it also makes the log's partitions for the coming days, which servers do by
    themselves if their user owns the tables.
    """
    if _is_missing(database_url):
        pending, before = migrations.pending(None), None
    else:
        found = upkeep.figures(database_url)
        pending, before = found.pending, found.form.revision
        if not found.form.is_behind:
            found.form.check()
    if not dry_run:
        for line in pending:
            click.echo(f"to run: {line}", err=True)
        began = time.monotonic()
        store = Store(database_url)
        try:
            store.migrate()
        finally:
            store.close()
        upkeep.make_days_to_come(database_url)
        if pending:
            click.echo(f"done after {time.monotonic() - began:.1f} s", err=True)
    if as_json:
        form = {"before": before, "form": migrations.HEAD, "dry_run": dry_run}
        options.print_json(form | {"pending" if dry_run else "ran": pending})
    elif not pending:
        click.echo(f"There is nothing to migrate: the database has the form {before}.")
    elif dry_run:
        click.echo("\n".join(f"would run: {line}" for line in pending))
    else:
        click.echo(f"The database has the form {migrations.HEAD}.")


@db.command()
@option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write, which must not exist.",
)
@options.common
def backup(database_url: str, as_json: bool, output: Path) -> None:
    """Write the database, as it is at this moment, to a new file; servers go on meanwhile.

    A copy of a SQLite file in use, made with cp, is worthless: part of the database is in another
    file, and all of it changes meanwhile. The backup is one file, checked, which only its owner
    may read.
    """
    file = _sqlite(
        database_url, f"pg_dump --format=custom --file={shlex.quote(str(output))} --dbname={{}}"
    )
    began = time.monotonic()
    sqlite_files.backup(file, output, _progress("pages"))
    size = output.stat().st_size
    if as_json:
        options.print_json({"file": str(output), "bytes": size})
    else:
        took = time.monotonic() - began
        click.echo(f"{output} holds the database ({size / _MIB:.1f} MiB, {took:.1f} s).")


@db.command()
@option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="The file that policyd db backup wrote.",
)
@options.common
def restore(database_url: str, as_json: bool, source: Path) -> None:
    """Put a backup in the place of the database, which no server may be using.

    The database that was there stays beside it. Log entries that wait in the spool go to the
    restored database. Changes made after the backup are not in it: make them again.
    """
    program = f"pg_restore --clean --dbname={{}} {shlex.quote(str(source))}"
    file = _sqlite(database_url, program, may_be_missing=True)
    real = Path(os.path.realpath(file))
    aside = sqlite_files.restore(source, real, datetime.now(UTC), _progress("pages"))
    if as_json:
        options.print_json({"file": str(real), "before": str(aside) if aside else None})
        return
    click.echo(f"{real} now holds what {source} holds.")
    if aside:
        click.echo(f"The database before is now {aside}: remove it when you no longer need it.")


@db.command("copy")
@option("--to", "target", required=True, metavar="URL", help="The new database, which is empty.")
@options.common
def copy_(database_url: str, as_json: bool, target: str) -> None:
    """Copy the database into another one, such as SQLite's into PostgreSQL's.

    Stop policyd serve first. You may interrupt the command, and run it again to go on. The copy has
    the same identity, so the spool's entries belong to it; servers use it once all its rows are
    counted.
    """
    _require(database_url)
    began = time.monotonic()
    counts = upkeep.copy(database_url, target, _copied())
    if as_json:
        options.print_json({"rows": counts})
        return
    for name, count in counts.items():
        click.echo(f"{name:24}{count:>12}")
    click.echo(
        f"All rows are there ({time.monotonic() - began:.0f} s). Start policyd serve with the new "
        "--database-url and the same --spool, and never with the old one again."
    )


@db.command()
@click.option("--yes", is_flag=True, help="Do it even where writers have to wait.")
@options.common
def vacuum(database_url: str, as_json: bool, yes: bool) -> None:
    """Give the free space of a SQLite file back to the disk.

    Decisions go on meanwhile. Where the file gives space back bit by bit, no writer waits for long;
    otherwise it is rewritten once, and changes to keys wait for that.
    """
    file = _sqlite(database_url, "psql --command='VACUUM (ANALYZE)' {}")
    if not sqlite_files.gives_back(file) and not yes:
        raise click.UsageError(_costs(file))
    before = file.stat().st_size
    sqlite_files.vacuum(file, _progress("pages"))
    after = file.stat().st_size
    if as_json:
        options.print_json({"bytes_before": before, "bytes": after})
    else:
        click.echo(f"{before / _MIB:.1f} MiB before, {after / _MIB:.1f} MiB now.")


def _costs(file: Path) -> str:
    page, pages, free = sqlite_files.free_pages(file)
    used = page * (pages - free)
    return (
        f"nothing was done: {page * free / _MIB:.1f} of {page * pages / _MIB:.1f} MiB are free, "
        "and the file has to be rewritten. Changes to keys wait for that, about "
        f"{used // _RATE + 1} s, the log waits in the spool, and the disk needs "
        f"{2 * used / _MIB:.1f} MiB more meanwhile. Give --yes to do so"
    )


def _sqlite(url: str, instead: str, *, may_be_missing: bool = False) -> Path:
    """The file of SQLite, which has to exist unless it `may_be_missing`.

    Raises SettingsError, which names the command to run `instead`, or StoreUnavailable.
    """
    file = sqlite_file(url)
    if file is None:
        command = instead.format(shlex.quote(upkeep.tool_arguments(url)))
        raise SettingsError(
            f"this is for SQLite, and nothing was done: PostgreSQL has a program for it: {command}"
        )
    if not may_be_missing:
        _require(url)
    return file


def _is_missing(url: str) -> bool:
    file = sqlite_file(url)
    return file is not None and not file.exists()


def _require(url: str) -> None:
    if _is_missing(url):
        raise StoreUnavailable(f"there is no database {sqlite_file(url)}: check --database-url")


def _progress(what: str) -> Callable[[int, int], None]:
    """Report progress on stderr, where that is a terminal."""
    shown_at = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal shown_at
        if sys.stderr.isatty() and (time.monotonic() - shown_at > 1 or done == of):
            shown_at = time.monotonic()
            click.echo(f"\r{done} of {of} {what} ", nl=done == of, err=True)

    return tell


def _copied() -> Callable[[Copied], None]:
    shown_at = time.monotonic()

    def tell(so_far: Copied) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at > 1:
            shown_at = time.monotonic()
            click.echo(f"{so_far.table}: {so_far.rows} of {so_far.of} rows", err=True)

    return tell
