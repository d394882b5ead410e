"""Fields of messages that may be unset."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from policyd.errors import InvalidArgument


def optional(message: Message, field: str) -> Any:
    """The value of a field with presence; None: it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def moment(message: Message, field: str) -> datetime | None:
    """The moment in a field of a message. None: it is not set. Raises InvalidArgument."""
    given: Timestamp | None = optional(message, field)
    try:
        return None if given is None else given.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{field} is not a time between the years 1 and 9999") from None
