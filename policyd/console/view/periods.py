"""The periods of time that pages show, and the buckets into which a chart divides them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import TypeVar

from policyd.console.view.log_query import moment
from policyd.store import Counts, RefusedKeyCounts

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_MAX_BUCKETS = 60
_Counted = TypeVar("_Counted", Counts, RefusedKeyCounts)
_STEPS = (_HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY)


@dataclass(frozen=True, slots=True)
class Period:
    """The time from `since` to just before `until`, both at a full hour."""

    name: str
    since: datetime
    until: datetime

    @property
    def last(self) -> datetime:
        """A moment in its last hour: the statistics include both ends."""
        return self.until - timedelta(seconds=1)

    @property
    def words(self) -> str:
        """The period in words, in UTC."""
        if self.name in DASHBOARD:
            return f"the last {DASHBOARD[self.name][0]}"
        return f"{_words(self.since)} to {_words(self.until)}"

    @property
    def query(self) -> dict[str, str]:
        """The URL parameters from which chosen() reads the period."""
        if self.name != RANGE:
            return {"period": self.name}
        ends = (("since", self.since), ("until", self.until))
        return {name: at.strftime("%Y-%m-%dT%H:%M") for name, at in ends}

    @property
    def before(self) -> datetime:
        """When the period before begins, which has the same length."""
        return self.since - (self.until - self.since)

    @property
    def step(self) -> timedelta:
        """The length of a bucket."""
        fitting = (step for step in _STEPS if (self.until - self.since) / step <= _MAX_BUCKETS)
        return next(fitting, _STEPS[-1])

    def buckets(self, hours: Iterable[tuple[datetime, Counts]]) -> list[tuple[datetime, Counts]]:
        """The counts of the hours, summed up by bucket; empty buckets are included."""
        return self._buckets(hours, Counts)

    def refused_keys(
        self, hours: Iterable[tuple[datetime, RefusedKeyCounts]]
    ) -> list[tuple[datetime, RefusedKeyCounts]]:
        """The counts of refused keys, summed up in the same way."""
        return self._buckets(hours, RefusedKeyCounts)

    def _buckets(
        self, hours: Iterable[tuple[datetime, _Counted]], empty: Callable[[], _Counted]
    ) -> list[tuple[datetime, _Counted]]:
        found = {start: empty() for start in self._starts()}
        for hour, counts in hours:
            start = self.since + (hour - self.since) // self.step * self.step
            if start in found:
                add(found[start], counts)
        return list(found.items())

    def _starts(self) -> Iterator[datetime]:
        start = self.since
        while start < self.until:
            yield start
            start += self.step


def _words(at: datetime) -> str:
    return f"{at:%b} {at.day}, {at:%H:%M}"


def add(total: _Counted, more: _Counted) -> None:
    """Add `more` to `total`."""
    for field in fields(total):
        setattr(total, field.name, getattr(total, field.name) + getattr(more, field.name))


def total(counted: Iterable[tuple[object, Counts]]) -> Counts:
    """The sum of all counts."""
    return _total(counted, Counts())


def total_refused_keys(counted: Iterable[tuple[object, RefusedKeyCounts]]) -> RefusedKeyCounts:
    """The sum of all counts of refused keys."""
    return _total(counted, RefusedKeyCounts())


def _total(counted: Iterable[tuple[object, _Counted]], whole: _Counted) -> _Counted:
    for _, counts in counted:
        add(whole, counts)
    return whole


DASHBOARD = {
    "24h": ("24 hours", timedelta(hours=24)),
    "7d": ("7 days", 7 * _DAY),
    "30d": ("30 days", 30 * _DAY),
    "90d": ("90 days", 90 * _DAY),
}
RANGE = "range"
"""The name of a period between two chosen moments."""
_LONGEST = timedelta(days=400)
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
USERS = {
    "today": ("Today", _DAY),
    "7d": ("7 days", 7 * _DAY),
    "30d": ("30 days", 30 * _DAY),
    "90d": ("90 days", 90 * _DAY),
}


def last_hours(name: str, now: datetime) -> Period:
    """The dashboard's period of this name, up to and including the current hour."""
    chosen = name if name in DASHBOARD else "24h"
    until = now.replace(minute=0, second=0, microsecond=0) + _HOUR
    return Period(chosen, until - DASHBOARD[chosen][1], until)


def chosen(parameters: Mapping[str, str], now: datetime) -> tuple[Period, str]:
    """The period of full hours that the parameters give, and what is wrong with them, or "": one
    of DASHBOARD by its name, or the time between two moments."""
    usual = last_hours(parameters.get("period", ""), now)
    ends = [parameters.get(name, "").strip() for name in ("since", "until")]
    if not any(ends):
        return usual, ""
    try:
        since = _hour(moment(ends[0])) if ends[0] else None
        until = _hour(moment(ends[1]) + _HOUR - timedelta(microseconds=1)) if ends[1] else None
        until = until or usual.until
        since = since or until - (usual.until - usual.since)
        earlier = since - _LONGEST  # When the period before may begin.
    except (ValueError, OverflowError):
        problem = "Give two times in UTC such as 2026-11-25T09:00"
        return usual, f"{problem}; the last {DASHBOARD[usual.name][0]} are shown."
    if not timedelta() < until - since <= _LONGEST or earlier < _EARLIEST:
        problem = f"From must be before Until, by at most {_LONGEST.days} days"
        return usual, f"{problem}; the last {DASHBOARD[usual.name][0]} are shown."
    return Period(RANGE, since, until), ""


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def whole_days(parameters: Mapping[str, str], now: datetime) -> tuple[Period, str]:
    """The period of days in UTC that the parameters give, and what is wrong with them, or ""."""
    tomorrow = now.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY
    name = parameters.get("period", "")
    chosen = name if name in USERS else "7d"
    usual = Period(chosen, tomorrow - USERS[chosen][1], tomorrow)
    if name != "days":
        return usual, "" if name in ("", *USERS) else "There is no such period; 7 days are shown."
    try:
        since, until = (_midnight(parameters.get(end, "")) for end in ("since", "until"))
    except ValueError:
        return usual, "Give two days such as 2026-11-25; until then, 7 days are shown."
    if not timedelta() <= until - since < timedelta(days=400):
        problem = "The first day must not be after the last, and at most 400 days fit"
        return usual, f"{problem}; 7 days are shown."
    return Period("days", since, until + _DAY), ""


def _midnight(text: str) -> datetime:
    at = moment(text).replace(hour=0, minute=0, second=0, microsecond=0)
    if at.year == MAXYEAR:
        raise ValueError("no day follows the last one")
    return at
