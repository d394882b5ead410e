"""The page of logs: its rows and filters, what is found by an ID, and its files."""

import csv
import html
import io
import json
from datetime import timedelta
from urllib.parse import quote

import pytest

from policyd.decision_log.record import Verdict
from policyd.engine.states import UserState
from tests.support.consoles import (
    HOSTILE,
    Console,
    Visitor,
    models_shown,
)
from tests.support.records import denied, outcome, record, utc_now


async def test_no_decisions_yet(console: Console, admin: Visitor) -> None:
    """Every page that shows decisions explains how to get some."""
    console.store.keys.create("app")
    assert "Point a client at the gateway" in (await admin.get("/")).text
    empty = (await admin.get("/logs")).text
    assert "No decisions yet" in empty
    assert "No end users in this period" in (await admin.get("/users")).text
    path = html.unescape(empty.partition('empty" hx-get="')[2].partition('"')[0])
    assert (await admin.get(path)).status == 204
    console.store.log.append([record(utc_now())])
    assert (await admin.get(path)).headers["HX-Refresh"] == "true"


async def test_a_blocked_request(console: Console, admin: Visitor) -> None:
    """A blocked request is flagged, with a tooltip that explains in plain words why."""
    console.store.log.append([denied(utc_now()), record(utc_now())])
    text = (await admin.get("/logs")).text
    assert text.count('class="flag blocked"') == 1
    assert "This request carried no user. It was blocked" in text
    assert 'role="tooltip"' in text


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"verdict": Verdict.WOULD_DENY, "status": 0}, "enforcing would have blocked it"),
        ({"user_state": UserState.EMPTY}, "no usable user"),
        ({"user_state": UserState.NOT_JSON, "status": 400}, "could not be read"),
        ({"flags": "invalid_override"}, "neither true nor false"),
    ],
)
async def test_what_flags_say(
    console: Console, admin: Visitor, made: dict[str, object], words: str
) -> None:
    """Each flag explains what it means for its request."""
    console.store.log.append([denied(utc_now(), **made)])
    assert words in (await admin.get("/logs")).text


async def test_filters(console: Console, admin: Visitor) -> None:
    """Each filter narrows the log down, and several do so together."""
    at = utc_now() - timedelta(hours=1)
    later = at + timedelta(minutes=30)
    key, _ = console.store.keys.create("app")
    console.store.log.append(
        [
            record(at, model="m0", end_user="ada & bob", trace_id="t-1"),
            denied(at, model="m1", key_id=key.id, operation="embedding"),
            denied(at, model="m2", verdict=Verdict.WOULD_DENY, status=0, trace_id="t-1"),
            record(later, model="m3", flags="invalid_override"),
        ]
    )
    between = quote((at + timedelta(minutes=10)).strftime("%Y-%m-%dT%H:%M:%S"))
    everything = {"m0", "m1", "m2", "m3"}
    assert await models_shown(admin, "") == everything
    assert await models_shown(admin, f"key={key.id}") == {"m1"}
    assert await models_shown(admin, "decision=denied") == {"m1"}
    assert await models_shown(admin, "decision=would_deny") == {"m2"}
    assert await models_shown(admin, "decision=allowed") == {"m0", "m3"}
    assert await models_shown(admin, "flag=policy_enforce_user_ids") == {"m1", "m2"}
    assert await models_shown(admin, "flag=invalid_override") == {"m3"}
    assert await models_shown(admin, "operation=embedding") == {"m1"}
    assert await models_shown(admin, "user=ada+%26+bob") == {"m0"}
    assert await models_shown(admin, "trace=t-1") == {"m0", "m2"}
    assert await models_shown(admin, f"since={between}") == {"m3"}
    assert await models_shown(admin, f"until={between}") == everything - {"m3"}
    assert await models_shown(admin, f"until={between}Z&decision=denied&key={key.id}") == {"m1"}
    assert await models_shown(admin, "trace=t-1&decision=denied") == set()
    assert await models_shown(admin, "key=&decision=&user=+") == everything


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        "key=nonsense",
        "decision=perhaps",
        "flag=%3Cscript%3E",
        "operation=dance",
        "user=" + "x" * 257,
        "trace=a+b",
        "trace=" + "x" * 100,
        "since=yesterday",
        "until=9999-99-99",
        "since=0001-01-01T00:00%2B14:00",
        "since=2026-01-02&until=2026-01-01",
        "after=nonsense",
        "since=%00&user=%ff%fe%00",
    ],
)
async def test_filters_with_nonsense(console: Console, admin: Visitor, query: str) -> None:
    """A malformed filter gets a message beside its value, and shows no decision."""
    console.store.log.append([record(utc_now(), model="found-it")])
    for path in ("/logs", "/logs/export.csv"):
        answer = await admin.get(f"{path}?{query}")
        assert answer.status == 400
        assert "found-it" not in answer.text
        assert "<script>" not in answer.text
    assert (await admin.get(f"/logs/rows?{query}")).status == 204


async def test_pages_of_the_log(console: Console, admin: Visitor) -> None:
    """The log shows the newest first, page by page, and keeps the filters until it ends."""
    at = utc_now() - timedelta(hours=1)
    made = [record(at + timedelta(seconds=n), model=f"n{n}") for n in range(120)]
    console.store.log.append(made)
    path, seen = "/logs?user=ada", []
    while path:
        text = (await admin.get(path)).text
        seen += [one.model for one in reversed(made) if f"<bdi>{one.model}</bdi>" in text]
        link = text.partition('<p class="pages"><a class="button" href="')[2].partition('"')[0]
        path = html.unescape(link)
    assert seen == [one.model for one in reversed(made)]
    assert "This is where the log begins for these filters" in text
    assert "hx-trigger" not in text


async def test_live_rows(console: Console, admin: Visitor) -> None:
    """The first page asks for its rows again, and gets them where one is new."""
    first = record(utc_now(), model="m1")
    console.store.log.append([first])
    page = (await admin.get("/logs?user=ada")).text
    path = html.unescape(page.partition('<tbody id="rows" hx-get="')[2].partition('"')[0])
    assert (await admin.get(path)).status == 204
    console.store.log.append([record(utc_now(), model="m2"), record(utc_now(), end_user="bob")])
    rows = (await admin.get(path)).text
    assert rows.index("m2") < rows.index("m1")
    assert "bob" not in rows
    path = html.unescape(rows.partition('<tbody id="rows" hx-get="')[2].partition('"')[0])
    assert (await admin.get(path)).status == 204
    console.store.log.append([outcome(first)])
    assert "200" in (await admin.get(path)).text


async def test_a_sample(console: Console, admin: Visitor) -> None:
    """A sample decision of the demo is marked as such, in the list and in the details."""
    one = record(utc_now(), sample=True)
    console.store.log.append([one])
    assert ">Sample<" in (await admin.get("/logs")).text
    assert "not a real request" in (await admin.get(f"/logs/{one.id}")).text


async def test_csv(console: Console, admin: Visitor) -> None:
    """The filtered log is exported whole as CSV, without a text that a spreadsheet would run."""
    at = utc_now() - timedelta(hours=1)
    made = [record(at + timedelta(seconds=n), end_user="=1+1") for n in range(1203)]
    console.store.log.append([*made, record(utc_now(), end_user="ada")])
    answer = await admin.get("/logs/export.csv?user=%3D1%2B1")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["id"] for row in rows] == [one.id for one in reversed(made)]
    assert {row["user"] for row in rows} == {"'=1+1"}


async def test_json_lines(console: Console, admin: Visitor) -> None:
    """The log is exported as JSON Lines."""
    console.store.log.append([denied(utc_now()), record(utc_now(), end_user="=1")])
    answer = await admin.get("/logs/export.jsonl")
    users = [json.loads(line)["user"] for line in answer.text.splitlines()]
    assert users == ["=1", ""]
    assert (await admin.get("/logs/export.exe")).status == 400


async def test_found_by_an_id(console: Console, admin: Visitor) -> None:
    """The search takes any of a request's IDs, with spaces around it or without."""
    one = record(utc_now(), request_id="req-1", trace_id="t-1")
    other = denied(utc_now(), trace_id="t-1")
    console.store.log.append([one, other, outcome(one, openai_id="chatcmpl-1")])
    spaced = f" {one.id[:8]} {one.id[8:]}\n"
    for wanted in (one.id, spaced, "req-1", "chatcmpl-1"):
        found = await admin.get(f"/logs?find={quote(wanted)}", follow=False)
        assert (found.status, found.headers["Location"]) == (303, f"/logs/{one.id}"), wanted
    text = (await admin.get("/logs?find=t-1")).text
    assert all(f'href="/logs/{each.id}?find=t-1"' in text for each in (one, other))
    filtered = (await admin.get("/logs?find=t-1&decision=denied")).text
    assert f'href="/logs/{other.id}?find=t-1&amp;decision=denied"' in filtered
    assert f'href="/logs/{one.id}"' not in filtered
    for wanted in ("nothing", "%00", quote(HOSTILE), "f" * 32):
        found = await admin.get(f"/logs?find={wanted}")
        assert found.status == 200
        assert "No decision matches" in found.text
        assert HOSTILE not in found.text
    assert (await admin.get("/logs?find=" + "x" * 257)).status == 400
    exported = (await admin.get("/logs/export.jsonl?find=t-1")).text
    assert len(exported.splitlines()) == 2


async def test_placeholders(console: Console, admin: Visitor) -> None:
    """The page warns of placeholders, with their values and the keys that send them."""
    key, _ = console.store.keys.create("Support chat")
    named = [record(utc_now(), key_id=key.id) for _ in range(97)]
    empty = [record(utc_now(), key_id=key.id, end_user="undefined") for _ in range(3)]
    console.store.log.append(named + empty)
    for path in ("/", "/users", f"/users?key={key.id}"):
        text = (await admin.get(path)).text
        assert "3% of users are placeholders" in text
        assert "undefined" in text
        assert "Support chat" in text
    assert "3 requests say <code>user = <bdi>undefined</bdi></code>" in text
    assert text.count("Placeholder</span>") == 1
    console.store.log.append([record(utc_now(), end_user="<script>alert(1)</script>")])
    assert "<script>alert" not in (await admin.get("/users")).text
    assert "are placeholders" not in (await admin.get("/users?key=key_0")).text
