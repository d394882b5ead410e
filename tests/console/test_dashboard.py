"""The dashboard's figures: what they say, and that each links to just the rows that it counts."""

import html
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from policyd.console.view import charts, figures, labels, periods
from policyd.decision_log.record import Verdict
from policyd.decision_log.refused_key import RefusedKeyCount
from policyd.store import Counts
from tests.support.consoles import Console, Visitor
from tests.support.mixed_log import fill
from tests.support.records import denied, outcome, record, utc_now

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_LINK = re.compile(r'<a href="(/logs\?[^"]*)"(?: id="([^"]*)")?>([^<]*)</a>')


class Link(NamedTuple):
    """A link of the dashboard to rows of the log."""

    url: str
    name: str
    text: str


def _links(text: str) -> list[Link]:
    return [Link(*map(html.unescape, found)) for found in _LINK.findall(text)]


def _figures(text: str) -> dict[str, Link]:
    return {one.name: one for one in _links(text) if one.name}


async def _rows(admin: Visitor, url: str) -> list[dict[str, Any]]:
    """The rows that a link lists."""
    answer = await admin.get(url.replace("/logs?", "/logs/export.jsonl?"))
    assert answer.status == 200, url
    return [json.loads(line) for line in answer.text.splitlines()]


def _tokens(rows: Sequence[dict[str, Any]]) -> int:
    return sum((row["input_tokens"] or 0) + (row["output_tokens"] or 0) for row in rows)


@pytest.mark.parametrize(
    "period", ["24h", *(pytest.param(other, marks=pytest.mark.slow) for other in ("7d", "range"))]
)
async def test_every_number_links_to_its_rows(
    console: Console, admin: Visitor, period: str
) -> None:
    """Behind each link are exactly the rows that its number counts: of all keys and of one, in the
    last hours and in any others."""
    keys = tuple(console.store.keys.create(name)[0].id for name in ("One", "Two"))
    now = utc_now()
    fill(console.store, 150, start=now - 20 * HOUR, step=timedelta(minutes=8), keys=keys)
    range_ = f"since={now - 15 * HOUR:%Y-%m-%dT%H:%M}&until={now - 6 * HOUR:%Y-%m-%dT%H:%M}"
    query = range_ if period == "range" else f"period={period}"
    for key in ("", keys[0]):
        text = (await admin.get(f"/?{query}&key={key}")).text
        found = _figures(text)
        for name in ("requests", "denied", "would-deny", "errors"):
            number = found.pop(f"figure-{name}")
            assert number.text == labels.number(len(await _rows(admin, number.url))), name
        await _check_shares(admin, found)
        await _check_sums(admin, found)
        for percent in (50, 95, 99):
            if f"figure-p{percent}" in found:
                rows = await _rows(admin, found.pop(f"figure-p{percent}").url)
                assert f"{labels.number(len(rows))} took longer" in text
        assert not found
        await _check_tables(admin, text)
        users = html.unescape(re.findall(r'hx-get="(/top-users[^"]*)"', text)[0])
        await _check_tables(admin, (await admin.get(users)).text)


async def _check_shares(admin: Visitor, found: dict[str, Link]) -> None:
    attributed = await _rows(admin, found["figure-attributed"].url)
    rest = await _rows(admin, found.pop("note-attributed").url)
    assert found.pop("figure-attributed").text == labels.share(len(attributed), len(rest))
    success = found.pop("figure-success")
    rows = await _rows(admin, success.url)
    errors = [row for row in rows if (row["upstream_status"] or 0) >= 400]
    assert rows
    assert not errors


async def _check_sums(admin: Visitor, found: dict[str, Link]) -> None:
    cost, tokens = found.pop("figure-cost"), found.pop("figure-tokens")
    rows = await _rows(admin, cost.url)
    assert tokens.text == labels.short(_tokens(rows))
    assert cost.text == labels.money(round(sum(row["cost_usd"] or 0 for row in rows) * 1e9))
    assert tokens.url == cost.url


async def _check_tables(admin: Visitor, text: str) -> None:
    tables = [one for one in _links(text) if not one.name]
    assert len(tables) > 5
    for one in tables:
        rows = await _rows(admin, one.url)
        cost = round(sum(row["cost_usd"] or 0 for row in rows) * 1e9)
        counted = {labels.number(len(rows)), labels.short(_tokens(rows)), labels.money(cost)}
        assert one.text in counted or ("attributed=yes" in one.url and one.text.endswith("%")), one


async def test_trends(console: Console, admin: Visitor) -> None:
    """A figure says by how much it differs from that of the period before."""
    hour = utc_now().replace(minute=0, second=0, microsecond=0)
    before = [record(hour - 30 * HOUR) for _ in range(10)] + [record(hour - 60 * HOUR)]
    now = [record(hour - 3 * HOUR) for _ in range(15)] + [denied(hour - 3 * HOUR)]
    told = [outcome(one, duration_us=2_000_000) for one in now[:15]]
    console.store.log.append([*before, *now, *told, *(outcome(one) for one in before)])
    cards = re.split('<div class="card figure-card ', (await admin.get("/?period=24h")).text)
    told_of = {card.split('"', 1)[0]: card for card in cards}
    assert 'title="Before: 10"' in told_of["requests"]
    assert "up </span>60%" in told_of["requests"]
    assert "new" in told_of["denied"]
    assert "trend bad" in told_of["attributed"]
    assert 'class="spark-line"' in told_of["p95"]
    week = (await admin.get("/?period=7d")).text
    assert 'class="trend' not in week, "the week before was not counted"


async def test_live_figures(console: Console, admin: Visitor) -> None:
    """The page asks for its figures again, and gets them where something has changed."""
    console.store.log.append([record(utc_now())])
    page = (await admin.get("/?period=7d")).text
    path = html.unescape(re.findall(r'id="figures"[^>]* hx-get="([^"]*)"', page)[0])
    assert (await admin.get(path, HX_Request="true")).status == 204
    console.store.log.append([denied(utc_now())])
    figures_only = await admin.get(path, HX_Request="true")
    assert 'id="figure-denied">1</a>' in figures_only.text
    assert "<html" not in figures_only.text
    assert '<a class="button small no-js" href="/?period=7d">Refresh</a>' in page
    past = (await admin.get("/?since=2026-01-01T00:00&until=2026-01-02T00:00")).text
    assert "every 10s" in page
    assert "every" not in "".join(re.findall('hx-trigger="[^"]*"', past))


@pytest.mark.parametrize(
    "query",
    [
        *("since=x", "since=2026-01-02&until=2026-01-01", "since=1900-01-01", "key=nonsense"),
        *("since=9999-12-31T23:59&until=9999-12-31T23:59", "until=0001-01-01T00:00", "key=%00"),
    ],
)
async def test_a_choice_of_nonsense(console: Console, admin: Visitor, query: str) -> None:
    """A malformed choice gets a message, and the usual figures."""
    console.store.log.append([record(utc_now())])
    answer = await admin.get(f"/?{query}")
    assert answer.status == 400
    assert 'role="alert"' in answer.text
    assert 'id="figure-requests">1</a>' in answer.text


async def test_rows_that_are_gone(console: Console, admin: Visitor) -> None:
    """The dashboard tells where it counts more than the log can still list."""
    now = utc_now()
    console.store.log.append([record(now - 5 * HOUR), record(now - 1 * HOUR)])
    told = "can no longer be listed"
    assert told not in (await admin.get("/")).text
    console.store.log.expire(now - 4 * HOUR, 10**6)
    assert told in (await admin.get("/")).text
    assert told not in (await admin.get(f"/?since={now - 2 * HOUR:%Y-%m-%dT%H:%M}")).text


async def test_refused_keys_of_any_time(console: Console, admin: Visitor) -> None:
    """The number of refused keys links to their page, for the same time."""
    at = utc_now() - 3 * HOUR
    minute = int(at.timestamp()) // 60
    console.store.log.append([record(at), RefusedKeyCount("a", 1, minute, "192.0.2.1", 0, 7, 0)])
    text = (await admin.get(f"/?since={at:%Y-%m-%dT%H:%M}&until={at + HOUR:%Y-%m-%dT%H:%M}")).text
    url, number = re.findall(r'<a href="(/refused\?[^"]*)" id="figure-refused">(\d+)</a>', text)[0]
    page = (await admin.get(html.unescape(url))).text
    assert f'<dd class="big">{number}</dd>' in page
    assert number == "7"
    assert "None in this period" in (await admin.get("/refused?until=2026-01-01T00:00")).text


def test_growth() -> None:
    """Growth is shown in per cent, within bounds, and is good or bad if a rise means either."""
    assert figures.change(0, 0) is None
    assert figures.change(3, 0) == figures.Trend("new", "up", "", "0")
    assert figures.change(3, 2, up="bad") == figures.Trend("50%", "up", "bad", "2")
    assert figures.change(1, 2, up="bad") == figures.Trend("50%", "down", "good", "2")
    assert figures.change(1000, 1000) == figures.Trend("0%", "same", "", "1,000")
    assert figures.change(10**6, 1) == figures.Trend("over 999%", "up", "", "1")


def test_sparklines() -> None:
    """A sparkline begins at 0, has its largest value at the top, and gaps between known values."""
    assert charts.spark([None, 0, 0]).is_empty
    assert charts.spark([]).is_empty
    assert charts.spark([0, 4, 2]).line == "M0 24L50 0L100 12"
    gap = charts.spark([1, 1, None, None, 2])
    assert gap.line == "M0 12L25 12M99 0L101 0"
    assert gap.area.count("Z") == 2
    assert charts.spark([0.5, 0.25], top=1).line == "M0 12L100 18"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (99_999, "99,999"),
        (100_000, "100k"),
        (999_499, "999k"),
        (999_600, "1.00M"),
        (12_345_678, "12.3M"),
        (2**62, "4612P"),
        (None, labels.UNKNOWN),
    ],
)
def test_short_numbers(value: int | None, shown: str) -> None:
    """Large numbers are shown in three digits."""
    assert labels.short(value) == shown


def test_chosen_periods() -> None:
    """A period is full hours: that of a name, or what contains two moments."""
    now = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
    named, _ = periods.chosen({"period": "7d"}, now)
    assert named == periods.last_hours("7d", now)
    given = {"since": "2026-11-24T08:20", "until": "2026-11-25T08:20", "period": "7d"}
    between, problem = periods.chosen(given, now)
    assert (between.since.hour, between.until.hour, problem) == (8, 9, "")
    assert periods.chosen(between.query, now)[0] == between
    open_, _ = periods.chosen({"since": "2026-11-24T08:00"}, now)
    assert open_.until == datetime(2026, 11, 25, 10, tzinfo=UTC)
    assert between.before == between.since - 25 * HOUR
    assert Counts() == Counts()


async def test_the_dashboard(console: Console, admin: Visitor) -> None:
    """The dashboard shows requests, blocks and the share attributed, over time and by key."""
    key, _ = console.store.keys.create("Support chat")
    at = utc_now()
    would = {"verdict": Verdict.WOULD_DENY, "status": 0}
    console.store.log.append(
        [record(at, key_id=key.id) for _ in range(1234)]
        + [denied(at, key_id=key.id), denied(at, key_id=key.id, **would)]
        + [denied(at, key_id="", mode=None, in_scope=False, status=403, flags="")]
    )
    for query in ("", "?period=7d", "?period=30d", "?period=nonsense"):
        text = (await admin.get("/" + query)).text
        assert ">1,236<" in text
        assert ">99.8%<" in text
        assert "Support chat" in text
        assert "No valid key" not in text
        assert "placeholder" not in text
        assert text.count('preserveAspectRatio="none" role="img"') == 2
    assert "could not be logged" not in text
    console.store.log.lose({"one": 3})
    assert "3 decisions could not be logged" in (await admin.get("/")).text
