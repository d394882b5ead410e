"""Logs: columns, filters in use, details with next and previous, and searches that stop."""

import html
import re
from datetime import UTC, datetime, timedelta

import pytest

from policyd.decision_log.record import Verdict
from policyd.store import log_pages
from tests.support.consoles import Console, Visitor, models_shown
from tests.support.records import denied, outcome, record, utc_now

MINUTE = timedelta(minutes=1)


async def test_more_filters(console: Console, admin: Visitor) -> None:
    """The log is filtered by model, status, answer, a part of the user, no user, and address."""
    at = utc_now() - 10 * MINUTE
    made = [
        record(at, model="m0", end_user="ada@example.com", source_ip="192.0.2.7"),
        denied(at, model="m1"),
        record(at, model="m2", end_user="Bob"),
        record(at - timedelta(days=2), model="m3", end_user="100%"),
    ]
    ends = [outcome(made[0]), outcome(made[2], status=500, duration_us=9_000_000)]
    console.store.log.append([*made, *ends])
    assert await models_shown(admin, "model=m2") == {"m2"}
    assert await models_shown(admin, "status=422") == {"m1"}
    assert await models_shown(admin, "status=500") == {"m2"}
    assert await models_shown(admin, "answer=error") == {"m2"}
    assert await models_shown(admin, "answer=success") == {"m0", "m3"}
    assert await models_shown(admin, "containing=ADA") == {"m0"}
    assert await models_shown(admin, "containing=%25") == {"m3"}
    assert await models_shown(admin, "nouser=1") == {"m1"}
    assert await models_shown(admin, "attributed=no") == {"m1"}
    assert await models_shown(admin, "ip=192.0.2.7") == {"m0"}
    assert await models_shown(admin, "slower=9000000") == {"m2"}
    assert await models_shown(admin, "last=1h") == {"m0", "m1", "m2"}
    assert await models_shown(admin, "last=7d&nouser=1&status=422") == {"m1"}


@pytest.mark.parametrize(
    "query",
    [
        *("status=20", "status=x", "status=600", "answer=maybe", "attributed=1", "nouser=yes"),
        *("slower=-1", "slower=" + "9" * 30, "last=forever", "model=" + "x" * 257),
        "ip=" + "x" * 257,
    ],
)
async def test_more_nonsense(console: Console, admin: Visitor, query: str) -> None:
    """A malformed filter gets a message, and shows no decision."""
    console.store.log.append([record(utc_now(), end_user="found-it")])
    answer = await admin.get(f"/logs?{query}")
    assert answer.status == 400
    assert "found-it" not in answer.text
    assert 'role="alert"' in answer.text


async def test_filters_in_use(console: Console, admin: Visitor) -> None:
    """Each filter in use is named, with a link that removes it and keeps the others."""
    key, _ = console.store.keys.create("Support <chat>")
    console.store.log.append([record(utc_now(), key_id=key.id)])
    text = (await admin.get(f"/logs?key={key.id}&decision=allowed&last=24h")).text
    chips = re.findall(r'<a href="([^"]*)" class="chip filter-chip">(.*?)</a>', text)
    assert [html.unescape(url) for url, _ in chips] == [
        "/logs?decision=allowed&last=24h",
        f"/logs?key={key.id}&last=24h",
        f"/logs?key={key.id}&decision=allowed",
    ]
    assert "Support &lt;chat&gt;" in chips[0][1]
    assert "Last 24 hours" in chips[2][1]


async def test_columns(console: Console, admin: Visitor) -> None:
    """The columns are those that the viewer has chosen, until the usual ones are asked for."""
    console.store.log.append(
        [record(utc_now(), source_ip="192.0.2.7", path="/v1/chat/completions", request_id="r-1")]
    )
    assert "192.0.2.7" not in (await admin.get("/logs")).text
    form = [("column", "ip"), ("column", "request"), ("column", "nonsense")]
    query = "?user=ada&after=" + "0" * 32
    chosen = await admin.post("/logs/columns", [*form, ("query", query)], follow=False)
    assert (chosen.status, chosen.headers["Location"]) == (303, "/logs?user=ada")
    text = (await admin.get("/logs?user=ada")).text
    heads = re.findall(r'<th scope="col" class="[^"]*">([^<]*)', text)
    assert heads == ["Time (", "IP address", "Request ID"]
    assert "192.0.2.7" in text
    assert "/v1/chat" not in text
    rows = html.unescape(re.findall(r'id="rows" hx-get="([^"]*)"', text)[0])
    console.store.log.append([record(utc_now(), source_ip="192.0.2.8")])
    assert "192.0.2.8" in (await admin.get(rows)).text
    await admin.post("/logs/columns", [*form, ("usual", "1")])
    assert "192.0.2.7" not in (await admin.get("/logs")).text


async def test_columns_elsewhere(admin: Visitor) -> None:
    """A choice of columns leads nowhere but to the log."""
    for query in ("//evil.example/", "https://evil.example/?x=1", "?next=//evil.example"):
        form = [("column", "ip"), ("query", query)]
        answer = await admin.post("/logs/columns", form, follow=False)
        assert answer.headers["Location"] == "/logs"


async def test_next_and_previous(console: Console, admin: Visitor) -> None:
    """Details lead to the next and the previous decision of the same filters, and back to them."""
    at = utc_now() - 10 * MINUTE
    made = [record(at + n * MINUTE, model="a" if n % 2 else "b") for n in range(6)]
    console.store.log.append(made)
    text = (await admin.get(f"/logs/{made[3].id}?model=a")).text
    assert f'rel="prev" href="/logs/{made[5].id}?model=a"' in text
    assert f'rel="next" href="/logs/{made[1].id}?model=a"' in text
    assert '<a href="/logs?model=a">' in text
    every = (await admin.get(f"/logs/{made[0].id}")).text
    assert f'rel="prev" href="/logs/{made[1].id}"' in every
    assert 'rel="next"' not in every
    listed = (await admin.get("/logs?model=a")).text
    assert f'href="/logs/{made[3].id}?model=a"' in listed
    assert (await admin.get(f"/logs/{made[3].id}?status=nonsense")).status == 200


@pytest.mark.slow
async def test_a_search_that_stops(
    console: Console, admin: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few decisions match, the page tells how far it has looked, and goes on from there."""
    now = utc_now()
    console.store.log.append(
        [record(now - n * MINUTE, model="rare" if n == 50 else "m") for n in range(60)]
    )
    monkeypatch.setattr(log_pages, "_SEARCH", 0)
    monkeypatch.setattr(log_pages, "_GROWS", 2)
    path = "/logs?model=rare"
    steps = 0
    while "<bdi>rare</bdi></span></td>" not in (text := (await admin.get(path)).text):
        assert "were looked at" in text
        path = html.unescape(re.findall(r'href="([^"]*)">Look further back', text)[0])
        steps += 1
    assert steps > 2
    rows = (await admin.get("/logs/export.jsonl?model=rare")).text.splitlines()
    assert len(rows) == 1


async def test_times_and_zones(console: Console, admin: Visitor) -> None:
    """Times are in UTC, marked so that scripts can put them into the viewer's zone."""
    at = datetime(2026, 11, 25, 9, 30, 0, 123000, tzinfo=UTC)
    console.store.log.append([one := record(at, verdict=Verdict.ALLOWED)])
    text = (await admin.get("/logs?since=2026-11-25T09:00&until=2026-11-25T10:00")).text
    moment = "2026-11-25T09:30:00.123+00:00"
    assert f'<time datetime="{moment}" data-local="short"><span>Nov 25</span> 09:30:00' in text
    assert 'type="datetime-local" data-local value="2026-11-25T09:00"' in text
    assert "hx-trigger" not in text
    details = (await admin.get(f"/logs/{one.id}")).text
    assert f'<time datetime="{moment}" data-local="exact">2026-11-25 09:30:00.123<' in details
