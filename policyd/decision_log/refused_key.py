"""Requests with a refused key: counted by minute and source, with a few samples.

A key is refused where a request brings none, one that is not in force, or several. Strangers can
send any number of such requests, from any address. So they are not decisions in the log, and what
is kept of them is bounded whatever they hold: see refused_tally.py for how they are counted, and
store/refused_keys.py for how long they stay.
"""

from datetime import datetime
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated

import msgspec

from policyd.decision_log.record import DecisionId, moment
from policyd.engine.states import Credential

MAX_TEXT = 200
"""Characters of a text in a sample. Longer texts are cut."""
OTHERS = "others"
"""Stands for all sources beyond the number that is counted one by one."""
_MAX_ADDRESS = 64
_LAST_MINUTE = 253_402_300_800 // 60
"""The first minute after the year 9999, in minutes since 1970."""
_NETWORK = 64
"""Bits of an IPv6 address that name its network. A client can use any address in its network."""

_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
# A gateway that decides by itself may claim anything here, and no database may fail at that.
_NO_NUL = r"^[^\0]*$"
_Process = Annotated[str, msgspec.Meta(max_length=32, pattern=_NO_NUL)]
_Source = Annotated[str, msgspec.Meta(max_length=_MAX_ADDRESS, pattern=_NO_NUL)]
_Stretch = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
"""More requests than a process can have in a minute, and few enough that sums of them stay in 64
bits."""


class RefusedKeyReason(IntEnum):
    """Why a key was refused."""

    MISSING = 1
    UNKNOWN = 2
    """Malformed, revoked, or never issued."""
    CONFLICTING = 3


REASONS = {
    Credential.GIVEN: RefusedKeyReason.UNKNOWN,
    Credential.MISSING: RefusedKeyReason.MISSING,
    Credential.CONFLICTING: RefusedKeyReason.CONFLICTING,
}


class RefusedKey(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """A sample: one request with a refused key. It holds no end user and no key."""

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
        """When the key was refused."""
        return moment(self.id)


class RefusedKeyCount(msgspec.Struct, frozen=True, array_like=True, tag="R"):
    """How many refused keys one process has had from one source in a stretch of about a minute.

    `process`, `stretch` and `source` identify it. It may come again with larger numbers, which
    then replace these.
    """

    process: _Process
    stretch: _Stretch
    """The number of the stretch, so that two stay distinct if the clock is set back."""
    minute: Annotated[int, msgspec.Meta(ge=0, lt=_LAST_MINUTE)]
    """When the stretch began, in minutes since 1970."""
    source: _Source
    """An IPv4 address, an IPv6 network, OTHERS, or "" where the address is not known."""
    missing: _Count
    unknown: _Count
    conflicting: _Count


# One source sends many requests.
@lru_cache(maxsize=1024)
def source_of(address: str) -> str:
    """The source that a client's address counts for; "" for a text that is not an address."""
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
