"""The IDs of decisions: each its own, but for a request that is asked again and decided alike.

The gateway never heard the first answer then, and the log would have two rows for one request.
Only identical requests that are decided alike share an ID, so that no caller can keep another
decision out of the log, and none stands there that the client did not get.
"""

import hashlib
import itertools
import re
import time
from collections.abc import Callable

from policyd.errors import InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

MAX_SKEW = 5 * 60 * 1000
"""Milliseconds that the time of an idempotency key may be from this machine's."""
_KEY = re.compile("[0-9a-f]{32}")
_TIME = 12
"""Digits of the millisecond, which an ID begins with."""
_HASH = 10
"""Bytes of the rest."""


class DecisionIds:
    """IDs in the order of time: 12 hexadecimal digits of the millisecond, then 12 of `process` and
    8 of a count, or else 20 of what was asked and decided."""

    def __init__(self, process: str, clock: Callable[[], float] = time.time) -> None:
        self._process = process
        self._clock = clock
        self._count = itertools.count()

    def next(self) -> str:
        """An ID that no other decision has."""
        now = int(self._clock() * 1000)
        return f"{now:012x}{self._process}{next(self._count) & 0xFFFFFFFF:08x}"

    def repeatable(self, request: pb.EvaluateRequest, decided: pb.EvaluateResponse) -> str:
        """The ID that every policyd gives to this request, which has an idempotency key, where it
        decides the same. Raises InvalidDescriptor where the key is malformed.
        """
        key = request.idempotency_key
        if not _KEY.fullmatch(key):
            raise InvalidDescriptor(
                "idempotency_key is 32 lower-case hexadecimal digits: 12 of the milliseconds since "
                "1970, and 20 that are random"
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
