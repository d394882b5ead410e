"""What the gateway needs of its surroundings, checked without starting anything."""

from collections.abc import Iterator

from gateway.policyd_client import check_policyd_files, spool_of
from gateway.settings import Settings
from policyd.command.config_checks import Check, certificate, free


def files(settings: Settings) -> Iterator[Check]:
    """The files that a worker reads at its start. Those of secrets are read with the settings."""
    yield from certificate(settings.tls_cert, settings.tls_key)
    if settings.asks_over_tls:
        flag = "--policyd-tls" if settings.policyd_tls else f"--policyd {settings.policyd}"
        yield Check(flag, lambda: _policyd_files(settings))
    if settings.is_local:
        yield Check(f"--spool {settings.spool}", lambda: look_at_spool(settings))


def _policyd_files(settings: Settings) -> str:
    check_policyd_files(settings)
    of = settings.policyd_ca or "the system's authorities"
    return f"policyd's certificate has to be issued by {of}"


def look_at_spool(settings: Settings) -> str:
    """What waits in the spool of a gateway that decides by itself. Raises SettingsError."""
    # Imported late, as only such a gateway needs it.
    from policyd.client.local_look import look_at_folder

    return look_at_folder(spool_of(settings))


def surroundings(settings: Settings, *, is_running: bool) -> Iterator[Check]:
    """Ports. `is_running`: the gateway itself holds them already."""
    if not is_running:
        yield from free(settings.listeners, "the gateway")
