"""What a connection to a policyd does, whichever protocol it speaks: connection.py speaks gRPC,
http_connection.py HTTP."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from policyd.v1 import policy_pb2 as pb

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[_Request, _Response]):
    """A method of PolicyService."""

    name: str
    request: type[_Request]
    response: type[_Response]


EVALUATE = Method("Evaluate", pb.EvaluateRequest, pb.EvaluateResponse)
BATCH_EVALUATE = Method("BatchEvaluate", pb.BatchEvaluateRequest, pb.BatchEvaluateResponse)
CHECK_KEY = Method("CheckKey", pb.CheckKeyRequest, pb.CheckKeyResponse)
REPORT_OUTCOME = Method("ReportOutcome", pb.ReportOutcomeRequest, pb.ReportOutcomeResponse)


class Transport(Protocol):
    """Calls the policyd at one address. Belongs to the event loop that it is made in."""

    @property
    def address(self) -> str:
        """Where it calls, as its operator wrote it."""

    @property
    def is_away(self) -> bool:
        """Whether the peer did not answer when it was last tried."""

    @property
    def load(self) -> int:
        """Calls under way."""

    async def ask(
        self,
        method: Method[_Request, _Response],
        request: _Request,
        seconds: float,
        *,
        is_patient: bool,
    ) -> _Response:
        """Make a call, and wait at most `seconds`. A call that `is_patient` is no sign of silence,
        as policyd itself may be waiting for a revision. Raises Failed."""

    async def answers(self, seconds: float) -> bool:
        """Whether the peer answers within `seconds`. Its health does not matter: it decides as long
        as it answers."""

    async def decides(self, seconds: float) -> bool:
        """Whether the peer answers within `seconds`, and does not say that it gives no decisions;
        one of an older version does not say it."""

    async def close(self) -> None:
        """Close the connection. Calls under way are cancelled."""
