"""The IDs of decisions: unique, except where a caller asks again and gets the same decision.

A gateway asks again when it did not get the first answer, and the log would otherwise have two rows
for one request. Only identical requests with the same decision share an ID. So no caller can
keep another decision out of the log, and the log has no decision that the caller did not get.
"""

import hashlib
import itertools
import re
import time
from collections.abc import Callable

from policyd.errors import InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

MAX_SKEW = 5 * 60 * 1000
"""Milliseconds by which the time in an idempotency key may differ from this machine's."""
_KEY = re.compile("[0-9a-f]{32}")
_TIME = 12
"""Hexadecimal digits of the time in milliseconds with which an ID begins."""
_HASH = 10
"""Bytes of the hash that follows it."""


class DecisionIds:
    """Makes IDs that sort by time: 12 hexadecimal digits of the time in milliseconds, then either
    12 of `process` and 8 of a counter, or 20 of a hash over the request and its decision."""

    def __init__(self, process: str, clock: Callable[[], float] = time.time) -> None:
        self._process = process
        self._clock = clock
        self._count = itertools.count()

    def next(self) -> str:
        """An ID that no other decision has."""
        now = int(self._clock() * 1000)
        return f"{now:012x}{self._process}{next(self._count) & 0xFFFFFFFF:08x}"

    def repeatable(self, request: pb.EvaluateRequest, decided: pb.EvaluateResponse) -> str:
        """The ID that every policyd gives to this request, which has an idempotency key, if it
        makes the same decision. Raises InvalidDescriptor where the key is malformed.
        """
        key = request.idempotency_key
        if not _KEY.fullmatch(key):
            raise InvalidDescriptor(
                "idempotency_key must be 32 lower-case hexadecimal digits: 12 for the milliseconds "
                "since 1970, and 20 random ones"
            )
        asked_at = key[:_TIME]
        if abs(int(asked_at, 16) - int(self._clock() * 1000)) > MAX_SKEW:
            return self.next()
        digest = hashlib.blake2b(digest_size=_HASH)
        asked = request.SerializeToString(deterministic=True)
        digest.update(len(asked).to_bytes(8))
        digest.update(asked)
        digest.update(decided.SerializeToString(deterministic=True))
        return asked_at + digest.hexdigest()
