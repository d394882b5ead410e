"""What a gRPC status says to a client of policyd: it was not reached in time, or it refused.

Only the first may let a request pass unchecked, where an operator wants that. UNAVAILABLE alone
does not say it: with details it is an answer of policyd's own, which has no settings yet, say.
"""

from enum import Enum, auto

import grpc

from policyd.errors import NoDecision

_Code = grpc.StatusCode
_DETAILS = "grpc-status-details-bin"
"""The trailer that holds an ErrorInfo. No balancer or proxy sends it, and no gRPC by itself."""


class Meaning(Enum):
    """What a call without an answer is to its caller."""

    NOT_REACHED = auto()
    """policyd was not reached in time: an outage. It is tried again until the deadline."""
    PASSING = auto()
    """policyd would not decide for now. It is tried again until the deadline."""
    ELSEWHERE = auto()
    """This policyd would not decide. One at another address may, so each of them is asked once."""
    FINAL = auto()
    """policyd would not decide this request, so no other would."""


TABLE = {
    _Code.OK: Meaning.FINAL,
    # A policyd that stops ends what it has not finished: it was reached, and refused nothing.
    _Code.CANCELLED: Meaning.PASSING,
    _Code.UNKNOWN: Meaning.FINAL,
    _Code.INVALID_ARGUMENT: Meaning.FINAL,
    _Code.DEADLINE_EXCEEDED: Meaning.NOT_REACHED,
    _Code.NOT_FOUND: Meaning.FINAL,
    _Code.ALREADY_EXISTS: Meaning.FINAL,
    _Code.PERMISSION_DENIED: Meaning.FINAL,
    # LOG_FULL, LOG_UNWRITABLE, BODIES_FULL, too many calls.
    _Code.RESOURCE_EXHAUSTED: Meaning.ELSEWHERE,
    # REVISION_NOT_REACHED.
    _Code.FAILED_PRECONDITION: Meaning.ELSEWHERE,
    _Code.ABORTED: Meaning.FINAL,
    _Code.OUT_OF_RANGE: Meaning.FINAL,
    _Code.UNIMPLEMENTED: Meaning.FINAL,
    _Code.INTERNAL: Meaning.FINAL,
    _Code.UNAVAILABLE: Meaning.NOT_REACHED,
    _Code.DATA_LOSS: Meaning.FINAL,
    _Code.UNAUTHENTICATED: Meaning.FINAL,
}
"""What each status means. With details NOT_REACHED is PASSING."""
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in _Code}


class Failed(NoDecision):
    """A call ended without an answer, with this status."""

    def __init__(self, code: grpc.StatusCode, details: str | None, meaning: Meaning) -> None:
        super().__init__(
            f"policyd gave no decision ({code.name}: {details})",
            is_outage=meaning is Meaning.NOT_REACHED,
        )
        self.code = code
        self.details = details
        self.meaning = meaning


def failed(error: grpc.aio.AioRpcError) -> Failed:
    """A call's error, and what it means."""
    meaning = TABLE[error.code()]
    if meaning is Meaning.NOT_REACHED and _has_details(error):
        meaning = Meaning.PASSING
    return Failed(error.code(), error.details(), meaning)


def failed_item(number: int, message: str) -> Failed:
    """What policyd answered to an item of a batch."""
    code = _BY_NUMBER.get(number, _Code.UNKNOWN)
    meaning = TABLE[code]
    return Failed(code, message, Meaning.PASSING if meaning is Meaning.NOT_REACHED else meaning)


def _has_details(error: grpc.aio.AioRpcError) -> bool:
    return any(name == _DETAILS for name, _ in error.trailing_metadata() or ())
