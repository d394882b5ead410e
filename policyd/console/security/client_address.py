"""The address of the client that sent a request, also behind proxies."""

from collections.abc import Iterable, Sequence

from policyd.command.networks import Network, address_of


def client_address(peer: str, forwarded: Iterable[str], proxies: Sequence[Network]) -> str:
    """The client's address: `peer`, or where that is one of `proxies`, one from X-Forwarded-For.

    Each proxy appends the address of its own peer, and a client can send a made-up beginning. So
    the header is read from the right, up to the first address that is not in `proxies`. A header
    with an unreadable address before that is not followed: the nearest address counts.
    """
    address = nearest = address_of(peer)
    if address is None or nearest is None:
        return peer
    for hop in reversed(",".join(forwarded).split(",")):
        if not any(address in network for network in proxies):
            break
        earlier = address_of(_without_port(hop.strip()))
        if earlier is None:
            return str(nearest)
        address = earlier
    return str(address)


def _without_port(hop: str) -> str:
    """The address without its port: some proxies append 192.0.2.1:4711 or [2001:db8::1]:4711."""
    host, colon, port = hop.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()):
        return hop.removeprefix("[").removesuffix("]") if hop.startswith("[") else hop
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    return hop if ":" in host else host
