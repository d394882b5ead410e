"""`policyd health`: whether the policyd on this machine is ready, for a container's probe."""

from pathlib import Path

import click

from policyd.asgi.probes import HEALTHZ, READYZ
from policyd.cli.options import OPTIONS
from policyd.command.address import Address
from policyd.command.health import report
from policyd.errors import SettingsError
from policyd.settings import ServerSettings


@click.command()
@OPTIONS.config
@OPTIONS.setting(ServerSettings, "http")
@OPTIONS.setting(ServerSettings, "tls_cert")
@OPTIONS.setting(ServerSettings, "tls_key")
@click.option("--live", is_flag=True, help="Ask whether it is alive, not whether it is ready.")
def health(http: str | None, tls_cert: Path | None, tls_key: Path | None, live: bool) -> None:
    """Say whether the policyd on this machine, which has to have --http, is ready.

    It takes the settings of `policyd serve`. Exit status: 0 if it is ready, 1 if not.
    """
    if not http:
        raise SettingsError(
            "--http is missing, where policyd serve says whether it is ready: "
            "give both commands the same --http HOST:PORT"
        )
    report(Address.parse(http, "--http"), HEALTHZ if live else READYZ, tls_cert, tls_key)
