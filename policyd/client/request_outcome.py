"""The outcome of a request as a gateway records it. PolicyClient reports it as a message, and
LocalPolicyClient logs it as it is: making a message and reading it again would cost more.
"""

from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from policyd.v1.policy_pb2 import Ending, Outcome


class RequestOutcome(NamedTuple):
    """What became of one request that was allowed. None and "" mean: not known."""

    decision_id: str
    ending: Ending.ValueType
    duration: int
    """Nanoseconds from the question whether it may pass until the end of its answer."""
    http_status: int = 0
    """The status of the upstream's answer. 0: there was none."""
    first_byte: int | None = None
    """Nanoseconds from that question until the head of the upstream's answer had arrived."""
    organization: str = ""
    openai_id: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None

    def message(self) -> Outcome:
        """The same as a message."""
        return Outcome(
            decision_id=self.decision_id,
            ending=self.ending,
            http_status=self.http_status,
            time_to_first_byte=None if self.first_byte is None else _duration(self.first_byte),
            duration=_duration(self.duration),
            openai_id=self.openai_id,
            model=self.model,
            organization=self.organization,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            cache_write_tokens=self.cache_write_tokens,
        )


def _duration(nanoseconds: int) -> Duration:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Duration(seconds=seconds, nanos=nanos)
