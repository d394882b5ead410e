"""The option that says when a key expires."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import click

from policyd.cli.options import option

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_NEVER = "never"


class Expiry(NamedTuple):
    """When a key expires. None: never."""

    at: datetime | None


class _Moment(click.ParamType[Expiry]):
    """A moment, or how far away it is."""

    name = "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> Expiry:
        """See click.ParamType."""
        if isinstance(value, Expiry):
            return value
        if value.lower() == _NEVER:
            return Expiry(None)
        try:
            if value[-1:] in _UNITS and value[:-1].isdecimal():
                return Expiry(datetime.now(UTC) + timedelta(**{_UNITS[value[-1]]: int(value[:-1])}))
            at = datetime.fromisoformat(value)
            return Expiry(at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no moment: give one such as 2027-01-31T09:30:00Z, how far away it "
                f"is, such as 12h or 90d, or {_NEVER}",
                param,
                ctx,
            )


expires = option(
    "--expires",
    "expires_at",
    type=_Moment(),
    help=f"When the key expires: a moment, or in how long, such as 90d; {_NEVER}.",
)
