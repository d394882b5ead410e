"""Headers that may name the end user, and the clients from which they count."""

from functools import lru_cache

from gateway.headers import Trust
from policyd.command.networks import Network, address_of


class EndUserHeaders:
    """The headers `names` count if a client in `networks` sends them; the gateway takes them out of
    all others' requests."""

    def __init__(self, names: tuple[str, ...], networks: tuple[Network, ...]) -> None:
        known = {name.encode(): name for name in names}
        self._trusted = Trust(frozenset(known), known)
        self._others = Trust(frozenset(known), {})
        self._networks = networks
        # Clients come again, and parsing an address takes longer than looking it up.
        self._is_trusted = lru_cache(maxsize=4096)(self._is_in_networks)

    def trust(self, client: tuple[str, int] | None) -> Trust:
        """How the headers of a client are read; `client` is its address and port."""
        if client is None or not self._networks:
            return self._others
        return self._trusted if self._is_trusted(client[0]) else self._others

    def _is_in_networks(self, text: str) -> bool:
        address = address_of(text)
        return address is not None and any(address in network for network in self._networks)
