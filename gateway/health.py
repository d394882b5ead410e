"""`policyd-gateway health`: whether the gateway of this machine is ready, for probes."""

from pathlib import Path

import click

from gateway.cli import OPTIONS
from gateway.settings import Settings
from policyd.asgi.probes import HEALTHZ, READYZ
from policyd.command.address import Address
from policyd.command.health import report


@click.command()
@OPTIONS.config
@OPTIONS.setting(Settings, "listen")
@OPTIONS.setting(Settings, "tls_cert")
@OPTIONS.setting(Settings, "tls_key")
@click.option("--live", is_flag=True, help="Say whether it runs, not whether it is ready.")
def health(listen: str, tls_cert: Path | None, tls_key: Path | None, live: bool) -> None:
    """Say whether the gateway of this machine is ready.

    It takes the settings of `policyd-gateway serve`. Exit status: 0 if it is ready, 1 if not.
    """
    report(Address.parse(listen, "--listen"), HEALTHZ if live else READYZ, tls_cert, tls_key)
