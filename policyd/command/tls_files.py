"""Files that TLS needs, looked at before anything begins to use them: gRPC itself would say no more
than that it cannot listen, or would fail each handshake."""

import ssl
from pathlib import Path

from policyd.errors import SettingsError

TLS = ("--tls-cert", "--tls-key")
"""The settings of a listener's certificate and its key."""
_MARKS = ((b"CERTIFICATE-----", "certificate"), (b"PRIVATE KEY-----", "private key"))


def load_pair(
    context: ssl.SSLContext,
    certificate: Path,
    key: Path,
    flags: tuple[str, str] = TLS,
) -> None:
    """Have `context` present a certificate; `flags` name the settings. Raises SettingsError."""
    for path, flag, (mark, what) in zip((certificate, key), flags, _MARKS, strict=True):
        if mark not in _read(path, flag):
            raise SettingsError(f"{flag} {path} holds no {what}: give it in PEM")
    try:
        # Without a function for it, a password would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as problem:
        cause = str(problem)
        if getattr(problem, "reason", "") == "KEY_VALUES_MISMATCH":
            cause = "the key belongs to another certificate"
        raise SettingsError(
            f"{flags[0]} {certificate} and {flags[1]} {key} cannot be used ({cause}): give a PEM "
            "certificate chain and its PEM key, without a password"
        ) from None


def load_authorities(context: ssl.SSLContext, path: Path, flag: str) -> None:
    """Have `context` trust the authorities in `path`. Raises SettingsError."""
    _read(path, flag)
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError):
        raise SettingsError(
            f"{flag} {path} holds no certificate that can be read: give certificates in PEM"
        ) from None


def check_pair(certificate: Path, key: Path, flags: tuple[str, str] = TLS) -> None:
    """Raises SettingsError unless the files hold a certificate and its key."""
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key, flags)


def check_authorities(path: Path, flag: str) -> None:
    """Raises SettingsError where the file holds no certificate."""
    load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), path, flag)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{flag} {path} cannot be read: {error.strerror}") from None
