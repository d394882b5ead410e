"""Which settings of policyd fit together, and what an operator is told where they do not."""

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from policyd.command.address import Address
from policyd.command.serving_settings import check_memory, check_tls_pair
from policyd.descriptor.end_users import check_end_users
from policyd.errors import SettingsError
from policyd.telemetry.tracing import check_traces

if TYPE_CHECKING:
    from policyd.settings import ServerSettings

# It stands in commands to copy: nothing that a shell or a program would read as its own.
_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.:/_~\[\]-]+")
LOCAL_MESSAGE = 2**20 + 2**16
"""Bytes of a message, at least, that gateways may send which decide by themselves: it holds a piece
of their spool."""
MAX_RETENTION = 36_500
"""Days that a decision can stay in the log."""


def check_together(settings: "ServerSettings") -> None:
    """Raises SettingsError where one does not fit, alone or beside the others."""
    check_memory(settings.memory, settings.max_body)
    if not 0 < settings.log_retention <= MAX_RETENTION:
        raise SettingsError(f"--log-retention takes days, up to {MAX_RETENTION}: 100 years")
    if not 0 <= settings.snapshot_max_age <= 24 * MAX_RETENTION:
        raise SettingsError(f"--snapshot-max-age takes hours, up to {24 * MAX_RETENTION}")
    check_tls_pair(settings.tls_cert, settings.tls_key)
    if settings.tls_client_ca and not settings.tls_cert:
        raise SettingsError("--tls-client-ca needs --tls-cert and --tls-key")
    if settings.local_token_file and settings.max_message < LOCAL_MESSAGE:
        raise SettingsError(
            f"--local-token-file needs a --max-message of at least {LOCAL_MESSAGE}: gateways "
            "hand over their decisions in messages of about 1 MiB"
        )
    _check_console(settings)
    check_end_users(settings.end_user_headers, settings.end_user_callers)
    check_traces(settings.traces, settings.trace_users)
    if not settings.insecure:
        _check_reach(settings)


def _check_console(settings: "ServerSettings") -> None:
    _check_url(settings.console_gateway_url, "--console-gateway-url")
    if settings.console_url:
        _check_url(settings.console_url, "--console-url")
        if urlsplit(settings.console_url).path.strip("/"):
            raise SettingsError("--console-url has no path: give the console a name of its own")
    _ = settings.console_proxies


def _check_url(text: str, flag: str) -> None:
    try:
        url = urlsplit(text)
        is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not _PLAIN_URL.fullmatch(text):
        raise SettingsError(f"{flag} takes a URL such as https://llm.example.com, not {text!r}")


def _check_reach(settings: "ServerSettings") -> None:
    """Beyond this machine, policyd speaks TLS and authenticates callers."""
    _check_asking(settings, settings.grpc, "--grpc")
    _check_asking(settings, settings.http, "--http")
    _check_encrypted(settings, settings.admin, "--admin")
    _check_encrypted(settings, settings.console, "--console")
    _check_encrypted(settings, settings.metrics, "--metrics")


def _check_asking(settings: "ServerSettings", address: Address | None, flag: str) -> None:
    if not _is_beyond(address) or (
        settings.tls_cert and (settings.tls_client_ca or settings.caller_token_file)
    ):
        return
    raise SettingsError(
        f"{flag} {address} can be reached from other machines: give --tls-cert, "
        "--tls-key and either --tls-client-ca or --caller-token-file, or --insecure if "
        "something else protects it"
    )


def _check_encrypted(settings: "ServerSettings", address: Address | None, flag: str) -> None:
    if _is_beyond(address) and not settings.tls_cert:
        raise SettingsError(
            f"{flag} {address} can be reached from other machines: give --tls-cert and "
            "--tls-key, or --insecure if something else protects it"
        )


def _is_beyond(address: Address | None) -> bool:
    return address is not None and not address.is_loopback
