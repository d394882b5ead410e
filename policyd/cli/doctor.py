"""`policyd doctor`: what is wrong with this deployment of policyd, and how to fix it."""

from pathlib import Path
from typing import Any

import click

from policyd.cli import options
from policyd.cli.options import OPTIONS, option
from policyd.command.doctor import examine
from policyd.command.settings import build, read_secret
from policyd.settings import ServerSettings


@click.command()
@option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with an API key that should be in force. It is not shown. Or set POLICYD_KEY.",
)
@click.option("--key", envvar="POLICYD_KEY", hidden=True)
@options.as_json
@OPTIONS.server_config
@OPTIONS.settings(ServerSettings)
@OPTIONS.log_level
def doctor(
    log_level: str, as_json: bool, key_file: Path | None, key: str | None, **given: Any
) -> None:
    """Look at policyd as it is deployed here, and say how to fix what is wrong.

    It takes the settings of policyd serve, which should be running. It looks at listeners, ports,
    the limit of open files, secrets and certificates, the database, the clock and the spool, and
    changes nothing. For a gateway, there is policyd-gateway doctor. Exits with 1 where a check has
    failed.
    """
    settings = build(ServerSettings, given)
    secret = read_secret(key_file) if key_file else (key or "").strip()
    # Imported late, so that --help does not load the server.
    from policyd.server.doctor import checks

    examine(checks(settings, secret), as_json=as_json)
