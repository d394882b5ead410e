"""The client by which the gateway asks policyd, or decides by policyd's settings."""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.settings import Settings
from policyd.client import ChannelCredentials, PolicyClient, tls_credentials
from policyd.command.settings import read_file
from policyd.command.tls_files import check_authorities, check_pair, load_authorities, load_pair

if TYPE_CHECKING:
    from policyd.client.local import LocalPolicyClient
    from policyd.telemetry.tracing import Tracer

_PAIR = ("--policyd-cert", "--policyd-key")


def policyd_client(settings: Settings) -> PolicyClient:
    """The client that asks policyd. Raises SettingsError."""
    over_http = settings.asks_over_http
    return PolicyClient(
        settings.policyd,
        timeout=settings.policy_timeout,
        credentials=http_context(settings) if over_http else credentials_of(settings),
        token=settings.policyd_token,
    )


def local_client(settings: Settings, tracer: "Tracer | None" = None) -> "LocalPolicyClient":
    """The client that decides by policyd's settings. `tracer` sends its spans. Raises
    SettingsError."""
    # Imported late, so that a gateway that asks policyd starts sooner and holds less.
    from policyd.client.local import LocalPolicyClient
    from policyd.client.local_telemetry import telemetry

    return LocalPolicyClient(
        settings.policyd,
        spool=spool_of(settings),
        token=settings.policyd_token,
        timeout=settings.policy_timeout,
        credentials=credentials_of(settings),
        max_staleness=settings.max_staleness,
        spool_limit=settings.spool_limit,
        spool_sync=settings.spool_sync,
        drop_when_full=settings.drop_when_full,
        drop_on_error=settings.drop_on_error,
        telemetry=telemetry(tracer, is_counted=settings.metrics is not None),
    )


def spool_of(settings: Settings) -> Path:
    """The folder of decisions that wait for policyd, of a gateway that decides by itself."""
    assert settings.spool is not None  # The settings have been checked.
    return settings.spool


def credentials_of(settings: Settings) -> ChannelCredentials | None:
    """The TLS credentials of connections to policyd over gRPC. None: without TLS. Raises
    SettingsError."""
    if not settings.policyd_tls:
        return None
    check_policyd_files(settings)
    files = (settings.policyd_ca, settings.policyd_cert, settings.policyd_key)
    authorities, certificate, key = (read_file(path) if path else None for path in files)
    return tls_credentials(authorities, certificate=certificate, key=key)


def http_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of connections to policyd over HTTP. None: without TLS. Raises
    SettingsError."""
    return tls_context(settings) if settings.asks_over_tls else None


def tls_context(settings: Settings) -> ssl.SSLContext:
    """TLS towards policyd: the authorities that count, and the gateway's own certificate. Raises
    SettingsError."""
    context = ssl.create_default_context()
    if settings.policyd_ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_authorities(context, settings.policyd_ca, "--policyd-ca")
    if settings.policyd_cert is not None and settings.policyd_key is not None:
        load_pair(context, settings.policyd_cert, settings.policyd_key, _PAIR)
    return context


def check_policyd_files(settings: Settings) -> None:
    """Raises SettingsError where each handshake with policyd would fail."""
    if settings.policyd_ca is not None:
        check_authorities(settings.policyd_ca, "--policyd-ca")
    if settings.policyd_cert is not None and settings.policyd_key is not None:
        check_pair(settings.policyd_cert, settings.policyd_key, _PAIR)
