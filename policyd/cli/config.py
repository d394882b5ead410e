"""`policyd config`: the settings of `policyd serve`, looked at without starting it."""

from itertools import chain
from typing import Any

import click

from policyd.cli import options
from policyd.cli.options import OPTIONS
from policyd.command.config_checks import report, running
from policyd.command.settings import build
from policyd.settings import ServerSettings


@click.group()
def config() -> None:
    """Check the settings of policyd serve."""


@config.command()
@running
@options.as_json
@OPTIONS.server_config
@OPTIONS.settings(ServerSettings)
@OPTIONS.log_level
def check(log_level: str, as_json: bool, is_running: bool, **given: Any) -> None:
    """Say what policyd serve would find wrong, by the same settings, without starting it.

    It looks at the settings, certificates, tokens, ports, folders and the database, and changes
    nothing. Exits with 2 where something is wrong.
    """
    settings = build(ServerSettings, given)
    # Imported late, so that --help does not load the server.
    from policyd.server.config_checks import files, surroundings

    report(chain(files(settings), surroundings(settings, is_running=is_running)), as_json=as_json)
