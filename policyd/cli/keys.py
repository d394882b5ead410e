"""`policyd keys`: API keys and their settings, in the database or over AdminService."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from policyd.cli import key_settings, options, setting_words
from policyd.cli.administration import find
from policyd.cli.expiry import Expiry, expires
from policyd.cli.key_settings import Changes
from policyd.cli.options import Age, as_json, option
from policyd.cli.place import Place, administered
from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import ApiKey
from policyd.policies import TABLE


@click.group()
def keys() -> None:
    """Create, list, change and revoke API keys."""


@keys.command()
@click.argument("name")
@key_settings.of_key
@expires
@as_json
@administered
def create(
    name: str, place: Place, as_json: bool, expires_at: Expiry | None, **settings: Any
) -> None:
    """Make the key NAME and print it. It is shown only once."""
    wanted = key_settings.changes(**settings)
    accept = IDENTIFIERS if wanted.accept is None else wanted.accept
    expiry = expires_at.at if expires_at else None
    with place.opened(create=True) as administrator:
        key, secret = administrator.create(name, wanted.applied(()), accept, expiry)
    _warn(wanted)
    if as_json:
        options.print_json(as_dict(key) | {"key": secret})
        return
    _print_key(key)
    click.echo(f"\n{secret}\n\nThis is the key. Keep it: it is not shown again.")


@keys.command("list")
@option("--revoked", is_flag=True, help="List revoked keys too.")
@as_json
@administered
def list_(place: Place, as_json: bool, revoked: bool) -> None:
    """List the keys, oldest first."""
    with place.opened() as administrator:
        found = administrator.all_keys(show_revoked=revoked)
    if as_json:
        options.print_json([as_dict(key) for key in found])
    elif found:
        rows = [_HEADING, *map(_row, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo("  ".join(cells).rstrip())
    else:
        click.echo("There are no keys. Make one: policyd keys create NAME", err=True)


def _has_expired(key: ApiKey) -> bool:
    return key.expires_at is not None and key.expires_at <= datetime.now(UTC)


_HEADING = ("ID", "NAME", "ENFORCE", "OVERRIDE", "ACCEPT", "STATE", "OTHER POLICIES")


def _row(key: ApiKey) -> tuple[str, ...]:
    mode, override = setting_words.original(key.policies)
    state = "revoked" if key.revoked_at else "expired" if _has_expired(key) else "in force"
    others = " ".join(setting_words.others(key.policies, are_brief=True)) or "-"
    return key.id, key.name, mode or "default", override, ",".join(key.accept), state, others


@keys.command()
@click.argument("named", metavar="KEY")
@as_json
@administered
def show(named: str, place: Place, as_json: bool) -> None:
    """Show a key, named by its ID or its name."""
    with place.opened() as administrator:
        _report(find(administrator, named), as_json)


@keys.command("set")
@click.argument("named", metavar="KEY")
@option("--name", help="A new name for the key.")
@key_settings.of_key
@expires
@as_json
@administered
def set_(
    named: str,
    place: Place,
    as_json: bool,
    name: str | None,
    expires_at: Expiry | None,
    **settings: Any,
) -> None:
    """Change the settings of a key, named by its ID or its name. Servers follow within a second."""
    wanted = key_settings.changes(**settings)
    changes = wanted.update() | ({} if name is None else {"name": name})
    if expires_at is not None:
        changes["expires_at"] = expires_at.at
    if not changes:
        raise click.UsageError("nothing to change: give an option, such as --policy NAME=audit")
    with place.opened() as administrator:
        _report(administrator.update(find(administrator, named).id, changes), as_json)
    _warn(wanted)


def _warn(wanted: Changes) -> None:
    if wanted.accept is not None:
        key_settings.warn_of_places(wanted.accept)


@keys.command()
@click.argument("named", metavar="KEY")
@option(
    "--keep",
    default="24h",
    type=Age(),
    help="How long the previous secret stays in force, at most 90d; 0s: it ends at once.",
)
@as_json
@administered
def rotate(named: str, place: Place, as_json: bool, keep: timedelta) -> None:
    """Give a key, named by its ID or its name, a new secret, and print it. It is shown only once.

    The previous secret stays in force for a while, so that clients can change one after the other.
    """
    with place.opened() as administrator:
        key, secret = administrator.rotate(find(administrator, named).id, keep)
    if as_json:
        options.print_json(as_dict(key) | {"key": secret})
        return
    _print_key(key)
    click.echo(f"\n{secret}\n\nThis is the new key. Keep it: it is not shown again.")


@keys.command()
@click.argument("named", metavar="KEY")
@as_json
@administered
def revoke(named: str, place: Place, as_json: bool) -> None:
    """Revoke a key, named by its ID or its name, for good."""
    with place.opened() as administrator:
        _report(administrator.revoke(find(administrator, named).id), as_json)


def _report(key: ApiKey, as_json: bool) -> None:
    if as_json:
        options.print_json(as_dict(key))
    else:
        _print_key(key)


def _print_key(key: ApiKey) -> None:
    shown = as_dict(key)
    del shown["policies"]
    for name, value in shown.items():
        text = ",".join(value) if isinstance(value, list) else value
        click.echo(f"{name:18}{'-' if text is None else text}")
    for number, line in enumerate(setting_words.others(key.policies) or ["-"]):
        click.echo(f"{'' if number else 'other policies':18}{line}")


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def as_dict(key: ApiKey) -> dict[str, Any]:
    """A key as JSON values."""
    mode, override = setting_words.original(key.policies)
    return {
        "id": key.id,
        "name": key.name,
        TABLE.original.name: mode,
        "override": override,
        "accept": list(key.accept),
        "created_at": key.created_at.isoformat(),
        "updated_at": key.updated_at.isoformat(),
        "revoked_at": _time(key.revoked_at),
        "expires_at": _time(key.expires_at),
        "previous_until": _time(key.previous_until),
        "suffix": key.suffix or None,
        "revision": key.revision,
        "policies": setting_words.as_dict(key.policies),
    }
