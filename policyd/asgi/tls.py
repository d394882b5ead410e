"""What an HTTP listener needs to speak TLS."""

import ssl
from pathlib import Path

from policyd.errors import SettingsError


def tls_context(
    certificate: Path | None, key: Path | None, client_authority: Path | None = None
) -> ssl.SSLContext | None:
    """The TLS context of a listener, None for plain HTTP. With `client_authority`, a file of PEM
    certificates, a client has to show a certificate that one of them issued. Raises SettingsError.
    """
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as problem:
        raise SettingsError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({problem}): give a PEM "
            "certificate chain and its PEM key, without a password"
        ) from None
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_authority)
        except (OSError, ssl.SSLError) as problem:
            raise SettingsError(
                f"--tls-client-ca {client_authority} cannot be used ({problem}): give PEM "
                "certificates"
            ) from None
    return context
