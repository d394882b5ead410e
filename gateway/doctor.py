"""`policyd-gateway doctor`: whether this gateway is well, and what to do where it is not."""

import asyncio
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from yarl import URL

from gateway.cli import OPTIONS
from gateway.config_checks import look_at_spool
from gateway.diagnosis import ask
from gateway.policyd_client import spool_of
from gateway.settings import Settings
from policyd.command import machine
from policyd.command.config_checks import Check
from policyd.command.doctor import Doubt, examine
from policyd.command.settings import build, read_secret
from policyd.errors import SettingsError

_PATIENCE = 5.0
"""Seconds for a connection."""


@click.command()
@OPTIONS.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Holds an API key of policyd that should be in force. It is not shown; by default doctor "
    "asks about the key of --api-key-file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@OPTIONS.server_config
@OPTIONS.settings(Settings)
@OPTIONS.log_level
def doctor(log_level: str, as_json: bool, key_file: Path | None, **given: Any) -> None:
    """Look at the gateway as it is deployed here, and say how to fix what is wrong.

    It takes the settings of policyd-gateway serve, which runs meanwhile. It looks at the listener,
    its port, the limit of open files, secrets and certificates, and whether it can reach policyd
    (with TLS, the token and an API key) and the upstream. It changes nothing. Exits with 1 where a
    check has failed.
    """
    settings = build(Settings, given)
    key = read_secret(key_file) if key_file else settings.api_key
    secrets = {"--key-file": key_file}
    for name in ("api_key", "upstream_api_key", "policyd_token"):
        secrets[f"--{name.replace('_', '-')}-file"] = given[f"{name}_file"]
    examine(_checks(settings, key, secrets), as_json=as_json)


def _checks(settings: Settings, key: str, secrets: Mapping[str, Path | None]) -> Iterator[Check]:
    yield from machine.listening(settings.listeners, "policyd-gateway serve")
    yield machine.ports(settings.listeners)
    yield machine.open_files(2)
    keys = {"--tls-key": settings.tls_key, "--policyd-key": settings.policyd_key}
    yield from machine.secrets({**secrets, **keys})
    yield from machine.certificates(
        {
            "--tls-cert": settings.tls_cert,
            "--policyd-cert": settings.policyd_cert,
            "--policyd-ca": settings.policyd_ca,
        }
    )
    if settings.is_local:
        yield Check(f"--spool {settings.spool}", lambda: look_at_spool(settings))
        folder = spool_of(settings)
        yield Check(
            "room for --spool", lambda: machine.room(folder, "--spool", settings.spool_limit)
        )
    yield Check(f"--policyd {settings.policyd}", lambda: _policyd(settings))
    if key:
        yield Check("API key", lambda: _key(settings, key))
    yield Check(f"--upstream {settings.upstream}", lambda: _upstream(settings))


def _policyd(settings: Settings) -> str:
    answer = asyncio.run(ask(settings))
    way = "over TLS" if settings.asks_over_tls else "without TLS"
    told = f"it answers {way}, with its settings at revision {answer.revision}"
    is_local = all(one.is_loopback for one in settings.policyd_addresses)
    if not settings.asks_over_tls and not is_local:
        fix = "https:// in --policyd" if settings.asks_over_http else "--policyd-tls"
        return Doubt(
            f"{told}: API keys cross the network in the clear; give {fix} unless something else "
            "protects them"
        )
    return told


def _key(settings: Settings, key: str) -> str:
    if not asyncio.run(ask(settings, key)).in_force:
        raise SettingsError(
            "it is not in force at this policyd: see policyd keys list --revoked, and whether "
            "--policyd is the right one"
        )
    return "it is in force"


def _upstream(settings: Settings) -> str:
    url = URL(settings.upstream)
    address = (url.host or "", url.port or 443)
    try:
        with socket.create_connection(address, timeout=_PATIENCE) as connection:
            if url.scheme == "https":
                context = ssl.create_default_context()
                with context.wrap_socket(connection, server_hostname=url.host):
                    pass
    except ssl.SSLCertVerificationError as error:
        raise SettingsError(
            f"its certificate is not trusted ({error.verify_message}): correct --upstream, or let "
            "the system trust its authority"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"it cannot be reached ({error.strerror or error}): correct --upstream, or let this "
            "machine connect to it"
        ) from None
    return "it can be reached"
