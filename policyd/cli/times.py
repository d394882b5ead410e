"""Moments and lengths of time, as operators write them in options and declarations."""

from datetime import UTC, datetime, timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def length(text: str) -> timedelta | None:
    """A length of time such as 30m or 90d; None where the text does not have this form. Raises
    ValueError or OverflowError where the length is too great."""
    unit, number = _UNITS.get(text[-1:]), text[:-1]
    if unit is None or not number.isdecimal():
        return None
    return timedelta(**{unit: int(number)})


def moment(text: str) -> datetime:
    """A moment in ISO 8601, taken as UTC where it names no time zone. Raises ValueError or
    OverflowError."""
    at = datetime.fromisoformat(text)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
