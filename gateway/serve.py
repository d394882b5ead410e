"""`policyd-gateway serve`."""

from typing import Any

import click

from gateway.cli import OPTIONS
from gateway.settings import Settings
from gateway.supervisor import ReadAgain, supervise
from policyd.command import service_manager
from policyd.command.crew import orders
from policyd.command.groups import ServerCommand, read_again
from policyd.command.open_files import raise_limit
from policyd.command.process import run
from policyd.command.settings import build
from policyd.command.versions import build_words
from policyd.telemetry.log import start_logging


@click.command(cls=ServerCommand)
@OPTIONS.server_config
@OPTIONS.settings(Settings)
@OPTIONS.log_level
@OPTIONS.log_format
def serve(log_level: str, log_format: str, **given: Any) -> None:
    """Run the gateway.

    A flag wins over the environment (POLICYD_GATEWAY_*), and that over --config FILE (YAML).
    SIGTERM drains it, SIGINT (Ctrl-C) does not, a second one cuts the requests under way. SIGHUP
    replaces its workers one at a time: new ones use the --config file, secrets, certificates and
    the installed version as they are then; --listen and --workers stay.
    """
    start_logging(log_level, log_format)
    raise_limit()
    context = click.get_current_context()
    run(_serve(build(Settings, given), lambda: build(Settings, read_again(context))))


async def _serve(settings: Settings, again: ReadAgain) -> None:
    async with orders() as given:
        await supervise(settings, given, _say_ready, again)


def _say_ready(at: str) -> None:
    click.echo(f"policyd-gateway is ready: {at} {build_words()}")
    service_manager.ready()
