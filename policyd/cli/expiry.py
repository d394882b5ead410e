"""The option that says when a key expires."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

import click

from policyd.cli import times
from policyd.cli.options import option

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
            left = times.length(value)
            return Expiry(times.moment(value) if left is None else datetime.now(UTC) + left)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a moment: give one such as 2027-01-31T09:30:00Z, how far away "
                f"it is, such as 12h or 90d, or {_NEVER}",
                param,
                ctx,
            )


expires = option(
    "--expires",
    "expires_at",
    type=_Moment(),
    help=f"When the key expires: a moment, a time from now such as 90d, or {_NEVER}.",
)
