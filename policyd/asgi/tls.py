"""What an HTTP listener needs to speak TLS."""

import ssl
from pathlib import Path

from policyd.command.tls_files import load_authorities, load_pair


def tls_context(
    certificate: Path | None, key: Path | None, client_authority: Path | None = None
) -> ssl.SSLContext | None:
    """The TLS context of a listener, None for plain HTTP. With `client_authority`, a file of PEM
    certificates, a client has to show a certificate that one of them issued. Raises SettingsError.
    """
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_pair(context, certificate, key)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        load_authorities(context, client_authority, "--tls-client-ca")
    return context
