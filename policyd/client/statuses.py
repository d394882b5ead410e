"""What a gRPC status means to a client: policyd was not reached in time, or would not decide.

Only the first may let a request pass unchecked, if the operator has chosen so. UNAVAILABLE alone
does not mean it: with details it is an answer of policyd, which may not know its settings yet.
"""

from enum import Enum, auto

import grpc

from policyd.errors import NoDecision

_Code = grpc.StatusCode
_DETAILS = "grpc-status-details-bin"
"""The trailer that holds an ErrorInfo. Balancers, proxies and gRPC itself do not send it."""


class Meaning(Enum):
    """What the failure of a call means to its caller."""

    NOT_REACHED = auto()
    """policyd was not reached in time: an outage. The call is tried again until the deadline."""
    PASSING = auto()
    """policyd would not decide for now. The call is tried again until the deadline."""
    ELSEWHERE = auto()
    """This policyd would not decide. Those at other addresses may, so each is asked once."""
    FINAL = auto()
    """policyd would not decide this request, so no other would."""


TABLE = {
    _Code.OK: Meaning.FINAL,
    # A policyd that stops ends calls that it has not finished: it was reached.
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
"""What each status means. With details, NOT_REACHED becomes PASSING."""
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in _Code}


class Failed(NoDecision):
    """A call failed with this status."""

    def __init__(self, code: grpc.StatusCode, details: str | None, meaning: Meaning) -> None:
        super().__init__(
            f"policyd gave no decision ({code.name}: {details})",
            is_outage=meaning is Meaning.NOT_REACHED,
        )
        self.code = code
        self.details = details
        self.meaning = meaning


def failed(error: grpc.aio.AioRpcError) -> Failed:
    """The failure of a call, with what it means."""
    meaning = TABLE[error.code()]
    if meaning is Meaning.NOT_REACHED and _has_details(error):
        meaning = Meaning.PASSING
    return Failed(error.code(), error.details(), meaning)


def failed_item(number: int, message: str) -> Failed:
    """The failure of one evaluation of a batch, by the status in its result."""
    code = _BY_NUMBER.get(number, _Code.UNKNOWN)
    meaning = TABLE[code]
    return Failed(code, message, Meaning.PASSING if meaning is Meaning.NOT_REACHED else meaning)


def bare(problem: NoDecision) -> NoDecision:
    """The error without the frames that it came through. They hold a connection, and gRPC keeps its
    threads as long as a caller keeps such an error."""
    problem.__cause__ = problem.__context__ = None
    return problem.with_traceback(None)


def _has_details(error: grpc.aio.AioRpcError) -> bool:
    return any(name == _DETAILS for name, _ in error.trailing_metadata() or ())
