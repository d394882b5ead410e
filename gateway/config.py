"""`policyd-gateway config`: the settings of the gateway, checked without starting it."""

from itertools import chain
from typing import Any

import click

from gateway.cli import OPTIONS
from gateway.config_checks import files, surroundings
from gateway.settings import Settings
from policyd.command.config_checks import report, running
from policyd.command.settings import build


@click.group()
def config() -> None:
    """Check the settings of policyd-gateway serve."""


@config.command()
@running
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@OPTIONS.server_config
@OPTIONS.settings(Settings)
@OPTIONS.log_level
def check(log_level: str, as_json: bool, is_running: bool, **given: Any) -> None:
    """Say what policyd-gateway serve would find wrong, by the same settings, without starting it.

    It looks at the settings, secrets, certificates and the port. Exits with 2 where something is
    wrong.
    """
    settings = build(Settings, given)
    report(chain(files(settings), surroundings(settings, is_running=is_running)), as_json=as_json)
