"""Fields of messages that may be unset."""

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from policyd.descriptor.message_fields import moment, optional
from policyd.errors import InvalidArgument
from policyd.v1 import admin_pb2 as pb

FIRST, LAST = (
    -62_135_596_800,
    253_402_300_799,
)  # The first second of the year 1, and the last of 9999.


def test_a_field_that_may_be_unset() -> None:
    """A field with presence has its value where it is set, if only to what it is by default."""
    message = pb.ListDecisionsRequest()
    assert optional(message, "start_time") is None
    assert moment(message, "start_time") is None
    message.start_time.SetInParent()
    assert optional(message, "start_time") == Timestamp()
    assert moment(message, "start_time") == datetime(1970, 1, 1, tzinfo=UTC)
    assert moment(message, "end_time") is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (FIRST, datetime(1, 1, 1, tzinfo=UTC)),
        (LAST, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (FIRST - 1, None),
        (LAST + 1, None),
        (2**62, None),
    ],
)
def test_a_moment(seconds: int, expected: datetime | None) -> None:
    """A moment is in UTC. One outside Python's years is an error, which names the field."""
    message = pb.ListDecisionsRequest(end_time=Timestamp(seconds=seconds))
    if expected:
        found = moment(message, "end_time")
        assert (found, found and found.tzinfo) == (expected, UTC)
        return
    with pytest.raises(InvalidArgument) as error:
        moment(message, "end_time")
    assert str(error.value) == "end_time is not a time between the years 1 and 9999"
