"""The client by which the gateway asks policyd."""

from gateway.settings import Settings
from policyd.client.aio import PolicyClient, tls_credentials
from policyd.command.settings import read_file


def policyd_client(settings: Settings) -> PolicyClient:
    """What to ask policyd with. Raises SettingsError."""
    credentials = None
    if settings.policyd_tls:
        files = (settings.policyd_ca, settings.policyd_cert, settings.policyd_key)
        authorities, certificate, key = (read_file(path) if path else None for path in files)
        credentials = tls_credentials(authorities, certificate=certificate, key=key)
    return PolicyClient(
        settings.policyd,
        timeout=settings.policy_timeout,
        credentials=credentials,
        token=settings.policyd_token,
    )
