"""`policyd simulate`: what other settings would have done, from the decision log."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import click

from policyd.cli import options
from policyd.cli.options import Moment, option
from policyd.cli.terminal import line, printable
from policyd.decision_log.export import values
from policyd.engine.model import ApiKey, KeySettings, Mode
from policyd.errors import InvalidArgument
from policyd.settings import MODES
from policyd.simulation import Simulation
from policyd.simulation import simulate as simulate_requests


@click.command()
@click.argument("key_id", metavar="ID")
@option("--since", default="7d", type=Moment(), help="Simulate the requests from then until now.")
@options.key_settings
@options.default_mode
@options.common
def simulate(
    database_url: str, as_json: bool, key_id: str, since: datetime, default_mode: str, **given: Any
) -> None:
    """Say what other settings would have done to the logged requests of the key with this ID.

    Without options: what "enforce" would have blocked. It changes nothing.
    """
    with options.opened(database_url) as store:
        key = store.keys.get(key_id)
        settings = _settings(key, {"mode": Mode.ENFORCE} | options.changes(**given))
        now = store.time()
        default = MODES[default_mode]
        found = simulate_requests(store, key.id, settings, since, now, default)
    if as_json:
        options.print_json(_simulation(found, settings))
    else:
        click.echo(_report(found, settings))


def _settings(key: ApiKey, changes: dict[str, Any]) -> KeySettings:
    try:
        return replace(KeySettings(key.id, key.mode, key.override, key.accept), **changes)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _simulation(found: Simulation, settings: KeySettings) -> dict[str, Any]:
    return {
        "key_id": settings.key_id,
        "enforce_user_ids": settings.mode.name.lower() if settings.mode else None,
        "override": settings.override.name.lower(),
        "accept": list(settings.accept),
        "requests": found.requests,
        "blocked": found.blocked,
        "by_operation": dict(found.by_operation),
        "by_model": dict(found.by_model),
        "by_user_agent": dict(found.by_user_agent),
        "examples": [values(record) for record in found.examples],
    }


def _report(found: Simulation, settings: KeySettings) -> str:
    mode = settings.mode.name.lower() if settings.mode else "default"
    share = f" ({found.blocked / found.requests:.1%})" if found.requests else ""
    lines = [
        f'With "{mode}", override {settings.override.name.lower()}, accepting '
        f"{', '.join(settings.accept)}: {found.blocked} of {found.requests} requests{share} "
        "would have been blocked."
    ]
    lists = (
        ("operation", found.by_operation),
        ("model", found.by_model),
        ("user agent", found.by_user_agent),
    )
    for title, rows in lists:
        lines += [f"\nBlocked by {title}:"] if rows else []
        lines += [f"{count:>10}  {printable(name) or '(not known)'}" for name, count in rows]
    lines += ["\nFor example:"] if found.examples else []
    lines += [f"  {line(record)}" for record in found.examples]
    return "\n".join(lines)
