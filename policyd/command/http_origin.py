"""The address of a policyd that is asked over HTTP: http://HOST:PORT or https://HOST:PORT."""

from typing import NamedTuple
from urllib.parse import urlsplit

from policyd.command.address import Address
from policyd.errors import SettingsError

SCHEMES = ("http", "https")
_PORTS = {"http": 80, "https": 443}


class HttpOrigin(NamedTuple):
    """The address and scheme by which a policyd is asked over HTTP."""

    scheme: str
    address: Address

    @property
    def url(self) -> str:
        """The URL, without a path."""
        return f"{self.scheme}://{self.address}"


def scheme_of(text: str) -> str:
    """`http` or `https`; "" where it is asked over gRPC."""
    scheme, mark, _ = text.strip().partition("://")
    return scheme.lower() if mark and scheme.lower() in SCHEMES else ""


def http_origin(text: str, flag: str) -> HttpOrigin:
    """Read such a URL; the port is 80 or 443 unless it is given. Raises SettingsError."""
    try:
        url = urlsplit(text.strip())
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
        url = urlsplit("")
    is_plain = url.path in ("", "/") and not (url.query or url.fragment or "@" in url.netloc)
    if url.scheme not in SCHEMES or not host or not is_plain or not _is_host(host):
        raise SettingsError(
            f"{flag} takes http://HOST:PORT or https://HOST:PORT, without a path, not {text!r}"
        )
    return HttpOrigin(url.scheme, Address(host, port or _PORTS[url.scheme]))


def _is_host(host: str) -> bool:
    return host.isascii() and host.isprintable() and " " not in host
