"""`policyd simulate`: what other settings would have done, from the decision log."""

from datetime import datetime
from typing import Any

import click

from policyd.cli import key_settings, options, setting_words
from policyd.cli.administration import OfStore, find
from policyd.cli.key_settings import Change, Changes
from policyd.cli.options import Moment, option
from policyd.cli.terminal import line, printable
from policyd.decision_log.export import values
from policyd.engine.policy import MODES
from policyd.engine.settings import ApiKey, KeySettings
from policyd.engine.states import Mode
from policyd.errors import InvalidArgument
from policyd.keys.defaults import above
from policyd.policies import TABLE
from policyd.simulation import Simulation
from policyd.simulation import simulate as simulate_requests

_HELP = f"""\
Say what other settings would have done to the logged requests of a key.

KEY is its ID or its name. Settings that are not given are as the key has them. If no mode is
given, it shows what {TABLE.original.title} with "enforce" would have blocked. Nothing is changed.
"""


@click.command(help=_HELP)
@click.argument("named", metavar="KEY")
@option("--since", default="7d", type=Moment(), help="Simulate the requests from then until now.")
@key_settings.of_key
@options.default_mode
@options.common
def simulate(
    database_url: str, as_json: bool, named: str, since: datetime, default_mode: str, **given: Any
) -> None:
    """Decide logged requests once more."""
    wanted = key_settings.changes(**given)
    with options.opened(database_url) as store:
        key = find(OfStore(store, options.actor()), named)
        settings = _settings(key, wanted)
        now = store.time()
        defaults = above(store.defaults(), TABLE.with_original(MODES[default_mode]))
        found = simulate_requests(store, key.id, settings, since, now, defaults)
    if as_json:
        options.print_json(_simulation(found, settings))
    else:
        click.echo(_report(found, settings))


def _settings(key: ApiKey, wanted: Changes) -> KeySettings:
    if not any("mode" in one.fields for one in wanted.policies):
        enforced = Change(TABLE.original.name, {"mode": Mode.ENFORCE})
        wanted = wanted._replace(policies=(*wanted.policies, enforced))
    accept = key.accept if wanted.accept is None else wanted.accept
    try:
        return KeySettings(key.id, wanted.applied(key.policies), accept)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _simulation(found: Simulation, settings: KeySettings) -> dict[str, Any]:
    mode, override = setting_words.original(settings.policies)
    return {
        "key_id": settings.key_id,
        TABLE.original.name: mode,
        "override": override,
        "accept": list(settings.accept),
        "policies": setting_words.as_dict(settings.policies),
        "requests": found.requests,
        "blocked": found.blocked,
        "flagged": found.flagged,
        "unknown": found.unknown,
        "by_operation": dict(found.by_operation),
        "by_model": dict(found.by_model),
        "by_user_agent": dict(found.by_user_agent),
        "examples": [values(record) for record in found.examples],
    }


def _report(found: Simulation, settings: KeySettings) -> str:
    mode, override = setting_words.original(settings.policies)
    others = "".join(f", {one}" for one in setting_words.others(settings.policies, are_brief=True))
    share = f" ({found.blocked / found.requests:.1%})" if found.requests else ""
    lines = [
        f'With "{mode or "default"}", override {override}{others}, accepting '
        f"{', '.join(settings.accept)}: {found.blocked} of {found.requests} requests{share} "
        "would have been blocked."
    ]
    if found.flagged:
        lines.append(f"{found.flagged} would have passed, and been flagged.")
    if found.unknown:
        lines.append(f"Of {found.unknown}, the log does not have what these policies judge.")
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
