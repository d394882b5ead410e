"""Outcomes that a client which decides by itself puts into its log."""

from collections.abc import Sequence

import pytest

from policyd.client.local_outcomes import LocalOutcomes
from policyd.client.request_outcome import RequestOutcome
from policyd.decision_log.record import Outcome
from policyd.errors import LogFull
from policyd.v1 import policy_pb2 as pb
from tests.support.waiting import until

ID = "019a0000000000000000000000000001"
ANSWERED = RequestOutcome(
    decision_id=ID,
    ending=pb.ENDING_CLIENT_LEFT,
    duration=3_000_001_999,
    http_status=206,
    first_byte=1_999,
    organization="org-1",
    openai_id="chatcmpl-1",
    model="gpt-5",
    input_tokens=11,
    output_tokens=12,
    cached_tokens=0,
    cache_write_tokens=14,
)


class Log:
    """A log that takes outcomes once it was full so many times."""

    def __init__(self, full: int = 0) -> None:
        self.full = full
        self.entries: list[Outcome] = []
        self.outcomes = LocalOutcomes(self._write)

    async def _write(self, entries: Sequence[Outcome]) -> None:
        if self.full:
            self.full -= 1
            raise LogFull("the spool is full")
        self.entries += entries


@pytest.mark.parametrize(
    "outcome",
    [
        ANSWERED,
        RequestOutcome(ID, pb.ENDING_NO_ANSWER, 5),
        RequestOutcome(ID, pb.ENDING_UNSPECIFIED, 0, 200, 0),
        RequestOutcome(ID, pb.ENDING_COMPLETE, 1, 200, 1, model="m", output_tokens=7),
        RequestOutcome(ID, pb.ENDING_UPSTREAM_BROKE, 1, 502, 1, input_tokens=0),
    ],
)
async def test_as_by_message(outcome: RequestOutcome) -> None:
    """An outcome that is logged as it is makes the entry that policyd makes of its message."""
    log = Log()
    log.outcomes.record(outcome)
    log.outcomes.report(outcome.message())
    await log.outcomes.reporter.close()
    recorded, reported = log.entries
    assert recorded == reported


async def test_malformed() -> None:
    """A message that is malformed is lost, and only that."""
    log = Log()
    log.outcomes.report(pb.Outcome(decision_id="none"))
    log.outcomes.report(ANSWERED.message())
    await log.outcomes.reporter.close()
    assert [one.decision_id for one in log.entries] == [ID]
    assert log.outcomes.reporter.lost == 1


async def test_a_full_log() -> None:
    """Outcomes wait while the log is full."""
    log = Log(full=1)
    log.outcomes.record(ANSWERED)
    await until(lambda: len(log.entries) == 1)
    assert log.outcomes.reporter.lost == 0
