"""The connections by which a client asks: over gRPC or over HTTP, as its addresses say."""

from ssl import SSLContext

from grpc import ChannelCredentials

from policyd.client.connection import Connection
from policyd.client.http_connection import HttpConnection
from policyd.client.http_pool import check_installed
from policyd.client.targets import Targets, addresses, is_http
from policyd.client.transport import Transport

CONNECTIONS = 2
"""Connections over gRPC to a single address. Its workers share them, and one that hangs must not
have both. Over HTTP an address has a pool of them."""
_SHARE = 4
"""Tries that fit into the time that a caller gives, at least."""
_MIN_PATIENCE, MAX_PATIENCE = 0.1, 1.0
"""Seconds until a peer counts as silent, at least and at most."""


class Opening:
    """Opens connections to `targets` for calls that may take `timeout` seconds each.

    Raises ValueError or TypeError where `targets` and `credentials` do not fit together.
    """

    def __init__(
        self,
        targets: Targets,
        credentials: ChannelCredentials | SSLContext | None,
        token: str,
        timeout: float,
    ) -> None:
        self._addresses = addresses(targets)
        self._token = token
        self._patience = min(max(timeout / _SHARE, _MIN_PATIENCE), MAX_PATIENCE)
        self._context: SSLContext | None = None
        self._credentials: ChannelCredentials | None = None
        if is_http(self._addresses):
            self._context = _context(self._addresses[0], credentials)
            check_installed()
        else:
            self._credentials = _credentials(credentials)

    def open(self) -> list[Transport]:
        """New connections, which belong to the event loop that runs."""
        if is_http(self._addresses):
            return [
                HttpConnection(one, self._context, self._token, self._patience)
                for one in self._addresses
            ]
        metadata = (("authorization", f"Bearer {self._token}"),) if self._token else None
        each = CONNECTIONS if len(self._addresses) == 1 else 1
        return [
            Connection(one, self._credentials, metadata, self._patience)
            for one in self._addresses
            for _ in range(each)
        ]


def _context(address: str, given: ChannelCredentials | SSLContext | None) -> SSLContext | None:
    if given is None:
        return None
    if not isinstance(given, SSLContext):
        raise TypeError(f"over HTTP, credentials are an ssl.SSLContext, not {given!r}")
    if not address.startswith("https://"):
        raise ValueError(f"credentials are for TLS: ask at https://, not at {address}")
    return given


def _credentials(given: ChannelCredentials | SSLContext | None) -> ChannelCredentials | None:
    if given is None or isinstance(given, ChannelCredentials):
        return given
    raise TypeError(f"credentials are what tls_credentials() makes, not {given!r}")
