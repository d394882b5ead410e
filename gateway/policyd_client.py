"""The client by which the gateway asks policyd."""

from gateway.settings import Settings
from policyd.client.aio import PolicyClient, tls_credentials
from policyd.command.settings import read_file
from policyd.command.tls_files import check_authorities, check_pair


def policyd_client(settings: Settings) -> PolicyClient:
    """What to ask policyd with. Raises SettingsError."""
    credentials = None
    if settings.policyd_tls:
        check_policyd_files(settings)
        files = (settings.policyd_ca, settings.policyd_cert, settings.policyd_key)
        authorities, certificate, key = (read_file(path) if path else None for path in files)
        credentials = tls_credentials(authorities, certificate=certificate, key=key)
    return PolicyClient(
        settings.policyd,
        timeout=settings.policy_timeout,
        credentials=credentials,
        token=settings.policyd_token,
    )


def check_policyd_files(settings: Settings) -> None:
    """Raises SettingsError where gRPC would fail each handshake with policyd."""
    if settings.policyd_ca is not None:
        check_authorities(settings.policyd_ca, "--policyd-ca")
    if settings.policyd_cert is not None and settings.policyd_key is not None:
        check_pair(settings.policyd_cert, settings.policyd_key, ("--policyd-cert", "--policyd-key"))
