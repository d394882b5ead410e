"""How often somebody may try to sign in: by address, and in total."""

import ipaddress
import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

_EACH = RateLimitItemPerMinute(10)
_ALL = RateLimitItemPerMinute(60)


class Attempts:
    """Counts attempts to sign in over the last minute."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def wait(self, address: str) -> int:
        """Count an attempt from `address`. Returns the seconds to wait, 0 if it may go on."""
        network = _network(address)
        # In this order, so that who is refused uses up nothing of what all share.
        if not self._limiter.hit(_EACH, network):
            return self._left(_EACH, network)
        return 0 if self._limiter.hit(_ALL, "all") else self._left(_ALL, "all")

    def _left(self, item: RateLimitItemPerMinute, name: str) -> int:
        stats = self._limiter.get_window_stats(item, name)
        return max(1, math.ceil(stats.reset_time - time.time()))


def _network(address: str) -> str:
    """What counts as one address: of IPv6, the 64 bits that one customer has at least."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
