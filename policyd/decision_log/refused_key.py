"""Requests whose API key was refused, counted by minute and source, with samples.

Any client can send such requests, as many as a line carries and from any address, so what is kept
of them is bounded whatever they hold. They are no decisions of the log: see refused_tally.py for
how they are counted, and store/refused_keys.py for how long they stay.
"""

from datetime import datetime
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated

import msgspec

from policyd.decision_log.record import DecisionId, moment
from policyd.engine.model import Credential

MAX_TEXT = 200
"""Characters of a text in a sample; what is longer is cut."""
OTHERS = "others"
"""The source that stands for all those beyond the bound on sources."""
_MAX_ADDRESS = 64
_LAST_MINUTE = 253_402_300_800 // 60
"""Of the year 9999."""
_NETWORK = 64
"""Bits of an IPv6 address that name its network: a client can take any address of its own one."""

_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_Name = Annotated[str, msgspec.Meta(max_length=32)]
_Source = Annotated[str, msgspec.Meta(max_length=_MAX_ADDRESS)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class RefusedKeyReason(IntEnum):
    """Why a key was refused."""

    MISSING = 1
    UNKNOWN = 2
    """Malformed, revoked, or never given out."""
    CONFLICTING = 3


REASONS = {
    Credential.GIVEN: RefusedKeyReason.UNKNOWN,
    Credential.MISSING: RefusedKeyReason.MISSING,
    Credential.CONFLICTING: RefusedKeyReason.CONFLICTING,
}


class RefusedKey(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """One request whose key was refused. It names no end user and no key."""

    id: DecisionId
    reason: RefusedKeyReason
    source_ip: _Text = ""
    method: _Text = ""
    path: _Text = ""
    """Without a query string."""
    model: _Text = ""
    user_agent: _Text = ""
    trace_id: _Text = ""
    request_id: _Text = ""

    @property
    def time(self) -> datetime:
        """When it was refused."""
        return moment(self.id)


class RefusedKeyCount(msgspec.Struct, frozen=True, array_like=True, tag="R"):
    """How many requests of one source a process has refused in one stretch of about a minute.

    `process`, `stretch` and `source` name it. It may come again with larger numbers, which then
    take the place of these.
    """

    process: _Name
    stretch: _Count
    """Counts the stretches of the process, so that a clock put back makes no two alike."""
    minute: Annotated[int, msgspec.Meta(ge=0, lt=_LAST_MINUTE)]
    """When it began, in minutes since 1970."""
    source: _Source
    """An IPv4 address, an IPv6 network, OTHERS, or "" where the address is not known."""
    missing: _Count
    unknown: _Count
    conflicting: _Count


# A source asks again and again.
@lru_cache(maxsize=1024)
def source_of(address: str) -> str:
    """The source that a client's address belongs to; "" where it is none."""
    if len(address) > _MAX_ADDRESS:
        return ""
    try:
        found = ip_address(address)
    except ValueError:
        return ""
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(IPv6Network((int(found), _NETWORK), strict=False))
