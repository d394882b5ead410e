"""`policyd logs`: the decision log, read from the database or over AdminService."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TextIO
from urllib.parse import urlencode

import click

from policyd.cli import options, refused_report, setting_words, terminal
from policyd.cli.administration import (
    Administrator,
    arrived_since,
    find_id,
    newest_first,
)
from policyd.cli.log_filter import log_filter, with_filters
from policyd.cli.log_status import status
from policyd.cli.options import Age, Moment, as_json, option
from policyd.cli.place import Place, administered
from policyd.cli.remove_sample import remove_sample
from policyd.decision_log import results
from policyd.decision_log.export import csv_rows, json_line, values
from policyd.decision_log.record import Record, is_decision_id
from policyd.keys.audit import Action
from policyd.store import LogFilter

_LOOK = 0.5
"""Seconds between two looks for new decisions."""
_LATE = timedelta(seconds=30)
"""How late a decision may arrive in the store and still be seen by `tail`."""


@click.group()
def logs() -> None:
    """Read the decision log: list it, follow it, export it."""


logs.add_command(remove_sample)
logs.add_command(status)


@logs.command("list")
@option(
    "--limit", default=50, type=click.IntRange(1), help="Print at most this many, newest first."
)
@option("--after", default="", metavar="ID", help="Continue after this decision.")
@with_filters
@as_json
@administered
def list_(place: Place, as_json: bool, limit: int, after: str, **given: Any) -> None:
    """List decisions, newest first. --json prints JSON Lines with every field."""
    if after and not is_decision_id(after):
        raise click.UsageError("--after takes the ID of a decision, as the list shows it")
    write = _writer(as_json)
    last = ""
    with place.opened() as administrator:
        wanted = _wanted(administrator, given)
        for count, record in enumerate(newest_first(administrator, wanted, after)):
            if count == limit:
                click.echo(f"For older ones: --after {last}", err=True)
                return
            write(record)
            last = record.id
    if not last:
        click.echo("The log has no such decision.", err=True)


@logs.command()
@option(
    "--lines", default=10, type=click.IntRange(0), help="Begin with this many earlier decisions."
)
@with_filters
@as_json
@administered
def tail(place: Place, as_json: bool, lines: int, **given: Any) -> None:
    """Print decisions as they are logged, until Ctrl-C."""
    write = _writer(as_json)
    with place.opened() as administrator:
        wanted = _wanted(administrator, given)
        # Looked up first: what is logged from now on is either on the page or new.
        known = {record.id for record in arrived_since(administrator, wanted, _LATE)}
        first = administrator.page(wanted, limit=lines) if lines else []
        for record in reversed(first):
            write(record)
        for record in _arriving(administrator, wanted, known | {record.id for record in first}):
            write(record)


@logs.command()
@click.argument("any_id", metavar="ID")
@as_json
@administered
def show(place: Place, as_json: bool, any_id: str) -> None:
    """Show everything that is logged about one request.

    ID is that of its decision, which a denial carries as x-request-id; or the caller's own, its
    trace's or OpenAI's, where only one request has it.
    """
    with place.opened() as administrator:
        record = _one(administrator, "".join(any_id.split()))
    if as_json:
        click.echo(json_line(record), nl=False)
        return
    shown = values(record)
    del shown["policies"]
    for name, value in shown.items():
        if value not in (None, "", []):
            text = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"{name:20}{terminal.printable(str(text))}")
    for number, result in enumerate(results.of(record)):
        click.echo(f"{'' if number else 'policies':20}{setting_words.logged(result)}")


def _one(administrator: Administrator, any_id: str) -> Record:
    """The one request that has this ID. Raises DecisionNotFound or UsageError."""
    found = administrator.page(LogFilter(any_id=any_id), limit=2)
    if len(found) > 1:
        raise click.UsageError(
            "several requests have this ID: list them by policyd logs list --any-id, and show one "
            "by the ID of its decision"
        )
    return found[0] if found else administrator.decision(any_id)


def _wanted(administrator: Administrator, given: dict[str, Any]) -> LogFilter:
    wanted = log_filter(**given)
    return replace(wanted, key_id=find_id(administrator, wanted.key_id))


@logs.command()
@option(
    "--older-than",
    metavar="AGE",
    type=Age(),
    help="Delete decisions that are older, such as 30d or 12h, by the database's clock.",
)
@option(
    "--keep-rows", type=click.IntRange(0), help="Keep this many decisions, and delete older ones."
)
@click.option("--yes", is_flag=True, help="Delete, and let retention do so from now on.")
@options.common
def retire(
    database_url: str, as_json: bool, older_than: timedelta | None, keep_rows: int | None, yes: bool
) -> None:
    """Delete old decisions from the log, however many they are.

    The server does this by itself, by --log-retention and --log-max-rows, but stands still where
    that would delete more than half of the log at once. This command confirms such a deletion.
    """
    if older_than is None and keep_rows is None:
        raise click.UsageError("say what to delete: --older-than 90d, or --keep-rows 1000000")
    with options.opened(database_url) as store:
        if not yes:
            held = store.log.status().decisions
            raise click.UsageError(
                f"nothing was deleted: the log has {held} decisions; give --yes to delete for good "
                "what you ask for"
            )
        store.audit.add(Action.LOG_RETIRE, options.actor(), _asked(older_than, keep_rows))
        before = store.log.agree(older_than, keep_rows)
        beyond = sys.maxsize if keep_rows is None else keep_rows
        if older_than is None:
            before = datetime.fromtimestamp(0, UTC)
        deleted = 0
        while some := store.log.expire(before, beyond):
            deleted += some
            if sys.stderr.isatty():
                click.echo(f"\r{deleted} decisions …", nl=False, err=True)
    if as_json:
        options.print_json({"deleted": deleted})
    else:
        click.echo(f"{deleted} decisions were deleted.")


def _asked(older_than: timedelta | None, keep_rows: int | None) -> dict[str, Any]:
    seconds = None if older_than is None else older_than.total_seconds()
    return {"older_than_seconds": seconds, "keep_rows": keep_rows}


@logs.command()
@option("--since", default="24h", type=Moment(), help="Sent then or later, up to 30 days ago.")
@option("--limit", default=20, type=click.IntRange(1, 1000), help="How many sources and samples.")
@options.common
def refused(database_url: str, as_json: bool, since: datetime, limit: int) -> None:
    """Show where requests without an API key in force came from: counts by source, and samples."""
    with options.opened(database_url) as store:
        sources = store.refused_keys.sources(since, store.time(), limit=limit)
        samples = store.refused_keys.samples(since, limit=limit)
    if as_json:
        options.print_json(refused_report.as_dict(sources, samples))
    else:
        click.echo(refused_report.as_text(sources, samples))


@logs.command()
@option(
    "--format",
    "form",
    default="jsonl",
    type=click.Choice(["jsonl", "csv"]),
    help="JSON Lines, or CSV without anything that a spreadsheet takes for a formula.",
)
@option(
    "--output",
    default="-",
    type=click.File("w", encoding="utf-8", lazy=False),
    help="A file; - for stdout.",
)
@with_filters
@administered
def export(place: Place, form: str, output: TextIO, **given: Any) -> None:
    """Write all decisions that the filters choose to a file, newest first."""
    with place.opened() as administrator:
        wanted = _wanted(administrator, given)
        administrator.note_export({"format": form, "filter": _chosen(given)})
        records = _counted(newest_first(administrator, wanted))
        lines = csv_rows(records) if form == "csv" else map(json_line, records)
        for line in lines:
            output.write(line)


def _chosen(given: dict[str, Any]) -> str:
    """The filters that were given, as the audit trail has them."""
    return urlencode({name: value for name, value in given.items() if value}, errors="replace")


def _counted(records: Iterator[Record]) -> Iterator[Record]:
    """The records, with progress reported on stderr where that is a terminal."""
    count = 0
    shown_at = time.monotonic()
    for record in records:
        yield record
        count += 1
        if sys.stderr.isatty() and time.monotonic() - shown_at > 1:
            shown_at = time.monotonic()
            click.echo(f"\r{count} decisions …", nl=False, err=True)
    if sys.stderr.isatty():
        click.echo(f"\r{count} decisions.  ", err=True)


def _arriving(administrator: Administrator, wanted: LogFilter, known: set[str]) -> Iterator[Record]:
    """Decisions that are logged and whose IDs are not `known`, without end. Those of several
    workers may come out of order.
    """
    while True:
        time.sleep(_LOOK)
        recent = arrived_since(administrator, wanted, _LATE)
        yield from (record for record in reversed(recent) if record.id not in known)
        known = {record.id for record in recent}


def _writer(as_json: bool) -> Callable[[Record], None]:
    if as_json:
        return lambda record: click.echo(json_line(record), nl=False)
    click.echo(terminal.HEADING)
    return lambda record: click.echo(terminal.line(record))
