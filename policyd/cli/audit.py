"""`policyd audit`: what administrators did."""

from datetime import datetime
from typing import Any

import click

from policyd.cli import options
from policyd.cli.administration import find_id
from policyd.cli.options import Moment, option
from policyd.cli.place import Place, administered
from policyd.cli.terminal import printable
from policyd.decision_log.export import item
from policyd.keys.audit import Action, AuditRecord

_HEADING = ("TIME", "REVISION", "ACTION", "KEY", "ACTOR", "CHANGES")


@click.command()
@option("--key-id", default="", metavar="KEY", help="Of this key: its ID, or its name.")
@option(
    "--action",
    type=click.Choice([action.value for action in Action]),
    metavar="ACTION",
    help=f"Of one action: {', '.join(Action)}.",
)
@option("--since", type=Moment(), help="Done then or later.")
@option(
    "--limit", default=50, type=click.IntRange(1), help="Print at most this many, newest first."
)
@options.as_json
@administered
def audit(
    place: Place,
    as_json: bool,
    key_id: str,
    action: str | None,
    since: datetime | None,
    limit: int,
) -> None:
    """List what administrators did, newest first. --json prints JSON Lines with every field."""
    with place.opened() as administrator:
        found = administrator.audit(find_id(administrator, key_id), action or "", since, limit)
    if as_json:
        for one in found:
            options.print_json(_as_dict(one))
        return
    if not found:
        click.echo("The audit trail has no such record.", err=True)
        return
    rows = [_HEADING, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _as_dict(one: AuditRecord) -> dict[str, Any]:
    return {
        "id": one.id,
        "time": one.at.isoformat(timespec="milliseconds"),
        "actor": one.by,
        "action": one.action,
        "key_id": one.key_id or None,
        "key_name": one.key_name or None,
        "before": one.before,
        "after": one.after,
        "revision": one.revision or None,
    }


def _row(one: AuditRecord) -> tuple[str, ...]:
    return (
        one.at.isoformat(sep=" ", timespec="seconds"),
        str(one.revision or "-"),
        printable(one.action),
        printable(one.key_name or one.key_id or "-"),
        printable(one.by or "-"),
        _changes(one),
    )


def _changes(one: AuditRecord) -> str:
    """The fields that changed: "accept: ["user"] -> ["safety_identifier"]"."""
    return printable(
        "; ".join(
            f"{name}: {item(one.before[name])} -> {item(value)}"
            if name in one.before
            else f"{name}: {item(value)}"
            for name, value in one.after.items()
            if name in one.before or value not in (None, "", {}, [])
        )
    )
