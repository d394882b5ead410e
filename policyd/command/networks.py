"""Networks that an operator lists in a setting, and the addresses in them."""

import ipaddress
from collections.abc import Iterable

from policyd.errors import SettingsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(texts: Iterable[str], flag: str, fix: str) -> tuple[Network, ...]:
    """The addresses and networks in the setting `flag`. Raises SettingsError, which says by `fix`
    what to name in place of every address.
    """
    return tuple(_network(text, flag, fix) for text in texts)


def _network(text: str, flag: str, fix: str) -> Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise SettingsError(
            f"{flag} takes addresses and networks such as 10.0.0.7,192.168.0.0/16, not {text!r}"
        ) from None
    if not network.prefixlen:
        raise SettingsError(f"{flag} {text} is every client, {fix}")
    if "/" in text and ipaddress.ip_interface(text).ip != network.network_address:
        raise SettingsError(
            f"{flag} {text} is an address within a network: did you mean {network}?"
        )
    return network


def address_of(text: str) -> Address | None:
    """The address that `text` is, None if it is none. An IPv4-mapped IPv6 address is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
