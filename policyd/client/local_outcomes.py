"""Outcomes on their way into the log of a client that decides by itself, in batches, as entries."""

from collections.abc import Awaitable, Callable, Sequence

import grpc

from policyd.client.reporter import Reporter
from policyd.client.request_outcome import RequestOutcome
from policyd.client.statuses import Failed, Meaning
from policyd.decider import log_entries
from policyd.decision_log.record import MAX_TIME, Ending, Outcome
from policyd.errors import InvalidArgument, LogFull
from policyd.v1 import policy_pb2 as pb

_ENDINGS = tuple(Ending)
_MOST = 1000
"""Bytes of an entry, at most, about: its texts have been cut."""
_LONGEST = MAX_TIME * 1000
"""Nanoseconds that the log has room for. A longer time would make its batch unreadable."""


class LocalOutcomes:
    """Logs outcomes by `write`, which may raise LogFull. Reporter keeps them meanwhile."""

    def __init__(self, write: Callable[[Sequence[Outcome]], Awaitable[None]]) -> None:
        self._write = write
        self.reporter = Reporter(self._log, lambda _: _MOST)

    def report(self, outcome: pb.Outcome) -> None:
        """Log an outcome that comes as a message. One that is malformed is lost."""
        try:
            entry = log_entries.outcome(outcome)
        except InvalidArgument as error:
            self.reporter.lose(str(error))
        else:
            self.reporter.report(entry)

    def record(self, outcome: RequestOutcome) -> None:
        """Log an outcome of the gateway's own. One with a time that the log cannot hold is lost."""
        first = outcome.first_byte
        if not 0 <= (first or 0) <= outcome.duration <= _LONGEST:
            self.reporter.lose("its duration is negative, or longer than the log can hold")
            return
        self.reporter.report(
            Outcome(
                outcome.decision_id,
                _ENDINGS[outcome.ending],
                outcome.http_status,
                None if first is None else first // 1000,
                outcome.duration // 1000,
                outcome.openai_id,
                outcome.model,
                outcome.organization,
                outcome.input_tokens,
                outcome.output_tokens,
                outcome.cached_tokens,
                cache_write_tokens=outcome.cache_write_tokens,
            )
        )

    async def _log(self, outcomes: list[Outcome]) -> Sequence[str]:
        try:
            await self._write(outcomes)
        except LogFull as error:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise Failed(code, str(error), Meaning.ELSEWHERE) from None
        return ()
