"""`policyd demo`: its options; policyd/demo holds the rest."""

from pathlib import Path
from typing import Any

import click

from policyd.cli.options import OPTIONS, option
from policyd.command.open_files import raise_limit
from policyd.command.process import fork_without_grpc
from policyd.command.serving_settings import GATEWAY
from policyd.settings import ServerSettings
from policyd.telemetry.log import start_logging


@click.command()
@OPTIONS.server_config
@option(
    "--data",
    default="./policyd-data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the database and the administration token.",
)
@option(
    "--gateway",
    default=str(GATEWAY),
    metavar="HOST:PORT",
    help="Where clients reach the gateway.",
)
@OPTIONS.setting(ServerSettings, "grpc")
@option("--console", default="127.0.0.1:8081", metavar="HOST:PORT", help="The web console.")
@OPTIONS.setting(ServerSettings, "metrics")
@option("--upstream", metavar="URL", help="Forward to this API instead of to the built-in one.")
@option(
    "--sample/--no-sample",
    default=True,
    help="Whether the log of a new database begins with a made-up week, marked as a sample.",
)
@click.option("--openai-api-key", envvar="OPENAI_API_KEY", hidden=True)
@click.option("--openai-base-url", envvar="OPENAI_BASE_URL", hidden=True)
@OPTIONS.log_level
def demo(log_level: str, **given: Any) -> None:
    """Run policyd, its gateway and a small OpenAI-compatible upstream together, to try them.

    Prints an API key and two requests to try: one is blocked, one passes. With OPENAI_API_KEY in
    the environment, requests go to OpenAI with that key. With OPENAI_BASE_URL they go there, with
    that key if it is set. With --upstream they go there with the key that the client sends.
    """
    fork_without_grpc()
    # The gateway is an extra, which the other commands do without.
    from policyd.demo import run as demonstration

    start_logging(log_level)
    raise_limit()
    demonstration.run(**given)
