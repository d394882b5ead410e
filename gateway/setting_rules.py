"""Which settings of the gateway fit together, and what an operator is told where they do not."""

from typing import TYPE_CHECKING

from gateway.upstream_url import KEY_HEADERS, check_upstream
from policyd.command.http_origin import scheme_of
from policyd.command.serving_settings import check_memory, check_tls_pair
from policyd.descriptor.end_users import check_end_user_headers
from policyd.errors import SettingsError
from policyd.telemetry.tracing import check_traces

if TYPE_CHECKING:
    from gateway.settings import Settings


def check_together(settings: "Settings") -> None:
    """Raises SettingsError where a setting is wrong, alone or together with others."""
    check_memory(settings.memory, settings.max_body)
    _check_policyd(settings)
    check_upstream(settings.upstream)
    _check_end_users(settings)
    _check_local(settings)
    check_traces(settings.traces)
    if settings.upstream_api_key_header not in ("", *KEY_HEADERS):
        raise SettingsError(
            f"--upstream-api-key-header is one of {', '.join(KEY_HEADERS)}, "
            f"not {settings.upstream_api_key_header!r}"
        )
    if settings.upstream_api_key_header and not settings.upstream_api_key:
        raise SettingsError(
            "--upstream-api-key-header says where the upstream's API key goes: give "
            "--upstream-api-key-file or --upstream-api-key too"
        )
    for name in ("api_key", "upstream_api_key", "policyd_token"):
        _check_secret(name, getattr(settings, name))
    check_tls_pair(settings.tls_cert, settings.tls_key)
    if not (settings.tls_cert or settings.insecure):
        _check_reach(settings)


def _check_policyd(settings: "Settings") -> None:
    if len({scheme_of(one) for one in settings.policyd.split(",")}) > 1:
        raise SettingsError(
            "--policyd takes addresses of one kind: all HOST:PORT for gRPC, all http:// or all "
            f"https://, not {settings.policyd!r}"
        )
    _ = settings.policyd_addresses
    if settings.policyd_tls and scheme_of(settings.policyd) == "http":
        raise SettingsError("--policyd-tls needs https:// in --policyd, where it has a scheme")
    if (settings.policyd_cert is None) != (settings.policyd_key is None):
        raise SettingsError("--policyd-cert and --policyd-key go together: give both or neither")
    if (settings.policyd_ca or settings.policyd_cert) and not settings.asks_over_tls:
        raise SettingsError("--policyd-ca and --policyd-cert need --policyd-tls, or https://")


def _check_reach(settings: "Settings") -> None:
    """Beyond this machine, the gateway speaks TLS."""
    if not settings.listen.is_loopback:
        raise SettingsError(
            f"--listen {settings.listen} can be reached from other machines, which would send "
            "their API keys in the clear: give --tls-cert and --tls-key, or --insecure if "
            "something else protects it"
        )
    if settings.metrics and not settings.metrics.is_loopback:
        raise SettingsError(
            f"--metrics {settings.metrics} can be reached from other machines: give --tls-cert and "
            "--tls-key, or --insecure if something else protects it"
        )


def _check_local(settings: "Settings") -> None:
    if not settings.is_local:
        if settings.spool is not None:
            raise SettingsError("--spool needs --decide local: else policyd keeps the log")
        return
    if settings.asks_over_http:
        raise SettingsError(
            "--decide local follows policyd over gRPC: give --policyd the HOST:PORT of its "
            f"--grpc, not {settings.policyd!r}"
        )
    if settings.spool is None:
        raise SettingsError(
            "--decide local needs --spool: a folder on a local disk for the decisions that "
            "policyd does not have yet"
        )
    if not settings.policyd_token:
        raise SettingsError(
            "--decide local needs --policyd-token-file: a file with the token that policyd has "
            "in its --local-token-file"
        )


def _check_end_users(settings: "Settings") -> None:
    check_end_user_headers(settings.end_user_headers)
    if settings.trusted_networks and not settings.end_user_headers:
        raise SettingsError(
            "--end-user-networks says whose headers name end users: give --end-user-headers too"
        )


def _check_secret(name: str, value: str) -> None:
    if not (value.isascii() and value.isprintable()) or " " in value:
        flag = "--" + name.replace("_", "-")
        raise SettingsError(
            f"{flag} must be one word of printable ASCII; check for stray characters"
        )
