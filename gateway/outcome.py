"""The outcome recorder: follows a request that policyd allowed to its end, for the decision log."""

import logging
import time
from typing import Protocol

from gateway import answer_reader
from gateway.answer_reader import Reader
from gateway.usage import MAX_TEXT, UNKNOWN, AnswerMetadata
from policyd.client.request_outcome import RequestOutcome
from policyd.v1.policy_pb2 import ENDING_UNSPECIFIED, Ending

log = logging.getLogger("gateway")


class Answer(Protocol):
    """What the recorder reads of the upstream's answer."""

    @property
    def status(self) -> int:
        """Its HTTP status."""

    def header(self, name: str) -> str:
        """The first value of a header, or an empty string."""


class OutcomeRecorder:
    """Records one request. It raises nothing: it logs its own faults, and the answer still passes.

    `asked` is when the gateway asked policyd, in nanoseconds of time.perf_counter_ns(). With an
    empty `decision_id` there is no decision to report an outcome of, and the answer is not read.
    The exchange sets `ending` when the request ends.
    """

    __slots__ = ("_answer", "_answered", "_asked", "_decision_id", "_reader", "ending", "size")

    def __init__(self, decision_id: str, asked: int) -> None:
        self._decision_id = decision_id
        self._asked = asked
        self._answer: Answer | None = None
        self._answered = 0
        self._reader: Reader | None = None
        self.ending: Ending.ValueType = ENDING_UNSPECIFIED
        self.size = 0
        """Bytes of the answer that have gone to the client."""

    def begin_answer(self, answer: Answer) -> None:
        """Note that the upstream's answer has begun."""
        self._answered = time.perf_counter_ns()
        self._answer = answer
        if self._decision_id:
            coding = answer.header("Content-Encoding")
            self._reader = answer_reader.reader(answer.header("Content-Type"), coding)

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the answer, which have gone to the client."""
        self.size += len(data)
        if self._reader is not None:
            try:
                self._reader.feed(data)
            except Exception:  # noqa: BLE001  # It is logged, and the answer still passes.
                self._give_up()

    def outcome(self) -> RequestOutcome:
        """The outcome, once the request has ended."""
        duration = time.perf_counter_ns() - self._asked
        answer = self._answer
        if answer is None:
            return RequestOutcome(self._decision_id, self.ending, duration)
        metadata = self._metadata()
        return RequestOutcome(
            self._decision_id,
            self.ending,
            duration,
            answer.status,
            self._answered - self._asked,
            answer.header("OpenAI-Organization")[:MAX_TEXT],
            metadata.openai_id or answer.header("X-Request-Id")[:MAX_TEXT],
            *metadata[1:],
        )

    def _metadata(self) -> AnswerMetadata:
        try:
            return UNKNOWN if self._reader is None else self._reader.metadata()
        except Exception:  # noqa: BLE001  # It is logged, and the rest is reported.
            self._give_up()
            return UNKNOWN

    def _give_up(self) -> None:
        log.exception(
            "a fault of the gateway: it could not read an answer, but passed it on",
            extra={"decision_id": self._decision_id},
        )
        self._reader = None
