"""`policyd serve`, and the line that says it is ready."""

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from policyd.cli import options
from policyd.cli.options import OPTIONS
from policyd.command import service_manager
from policyd.command.crew import orders
from policyd.command.groups import ServerCommand, read_again
from policyd.command.open_files import raise_limit
from policyd.command.process import fork_without_grpc, run
from policyd.command.settings import build
from policyd.command.threads import StoreThreads
from policyd.command.versions import build_words
from policyd.decision_log.spool import left
from policyd.errors import PolicydError
from policyd.settings import ServerSettings
from policyd.telemetry.log import start_logging

if TYPE_CHECKING:
    from policyd.server.supervisor import ReadAgain

_LINK = 2.0
"""Seconds that the line "ready" waits for the console's first link; also between two tries."""
_LEFT = 3
"""The exit status where entries are left in the spool."""


@click.command(cls=ServerCommand)
@OPTIONS.server_config
@OPTIONS.settings(ServerSettings)
@OPTIONS.log_level
@OPTIONS.log_format
def serve(log_level: str, log_format: str, **given: Any) -> None:
    """Run policyd: answer gateways, and manage keys.

    SIGTERM drains it first, SIGINT (Ctrl-C) does not; a second signal cuts what is under way.
    SIGHUP replaces its processes one at a time. They go by the --config file, tokens and
    certificates as they are then, and by the version that is installed then, if it has the same
    settings; addresses, database, spool, the file of the administration token and the number of
    workers stay.
    """
    start_logging(log_level, log_format)
    raise_limit()
    fork_without_grpc()
    context, settings = click.get_current_context(), build(ServerSettings, given)
    run(_serve(settings, lambda: build(ServerSettings, read_again(context))))
    if waiting := left(settings.spool):
        logging.getLogger(__name__).warning(
            "%d bytes of the decision log wait in %s for the database: the next start ships them",
            *(waiting, settings.spool),
        )
        sys.exit(_LEFT)


async def _serve(settings: ServerSettings, again: "ReadAgain") -> None:
    # Imported late, so that --help does not load the server.
    from policyd.server.supervisor import supervise

    logging.getLogger(__name__).info("the administration token is in %s", settings.admin_token_file)
    async with orders() as given:
        await supervise(settings, given, _say_ready, again)


async def _say_ready(settings: ServerSettings) -> None:
    http, metrics = settings.http, settings.metrics
    at = f"grpc={settings.grpc} admin={settings.admin}" + (f" http={http}" if http else "")
    last = (f"metrics={metrics} " if metrics else "") + build_words()
    if settings.console is None:
        _say_is_ready(f"{at} {last}")
        return
    # In a thread: this loop may serve decisions, and the database may be silent.
    asking = StoreThreads("the console's link", settings.database_timeout)
    saying = asyncio.create_task(_say_link(settings, asking))
    try:
        # The link comes first, unless the database is too slow to say whether there is a password.
        await asyncio.wait({saying}, timeout=_LINK)
        url = await asking.run(_console_url, settings)
        _say_is_ready(f"{at} console={url} {last}")
        await saying
    finally:
        saying.cancel()


def _say_is_ready(at: str) -> None:
    click.echo(f"policyd is ready: {at}")
    service_manager.ready()


async def _say_link(settings: ServerSettings, asking: StoreThreads) -> None:
    while True:
        try:
            link = await asking.run(_first_link, settings)
        except PolicydError as error:
            logging.getLogger(__name__).debug("the console's first link is not known: %s", error)
            await asyncio.sleep(_LINK)
        else:
            if link:
                click.echo(f"The console has no password yet. Set it by this one-time link: {link}")
            return


def _first_link(settings: ServerSettings) -> str | None:
    # Imported late: a server without a console does not load one.
    from policyd.console import first_link

    with options.opened(settings.database_url) as store:
        return first_link(settings, store)


def _console_url(settings: ServerSettings) -> str:
    from policyd.console import console_url

    return console_url(settings)
