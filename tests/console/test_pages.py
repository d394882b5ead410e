"""The console's pages, as a browser without JavaScript gets them."""

import csv
import html
import io
import json
import re
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from policyd.console import ConsoleServer
from policyd.console.view import charts, documentation, labels, periods
from policyd.console.view.render import HERE
from policyd.decision_log.record import Ending, Verdict
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount, RefusedKeyReason
from policyd.engine.decision import INVALID_OVERRIDE
from policyd.engine.settings import ApiKey, Setting, setting_of
from policyd.engine.states import Ignored, Mode, Override, Source, UserState
from policyd.policies import TABLE
from policyd.store import Counts, Store
from policyd.store.workers import Gateway
from tests.support.consoles import (
    HOSTILE,
    SHOWN,
    Console,
    Visitor,
    models_shown,
    named,
    prepare,
    running,
    settings,
    settings_form,
)
from tests.support.postgresql import PostgreSQL
from tests.support.records import decision_id, denied, outcome, record, utc_now

ORIGINAL = TABLE.original
FLAG_SETS = (ORIGINAL.flag, INVALID_OVERRIDE, f"{ORIGINAL.flag},{INVALID_OVERRIDE}")
SOURCES = ("192.0.2.1", "others", "")


def _set(key: ApiKey) -> Setting:
    """The setting of ORIGINAL."""
    return setting_of(key.policies, ORIGINAL.name)


async def test_no_keys_yet(admin: Visitor) -> None:
    """The dashboard and the list of keys name the first step."""
    for path in ("/", "/keys"):
        assert "Create the first key" in (await admin.get(path)).text


async def test_a_new_key(console: Console, admin: Visitor) -> None:
    """A new key is shown once, with snippets for this instance's gateway."""
    made = await admin.post("/keys", named({"name": "Support chat", "mode": "enforce"}))
    assert made.status == 201
    secret = made.text.partition('<code id="key">')[2][:51]
    assert secret.startswith("up-")
    assert made.text.count(secret) == 4
    assert "http://127.0.0.1:8080/v1" in made.text
    assert made.headers["Cache-Control"] == "no-store"
    (key,) = console.store.keys.list()
    assert (key.name, _set(key).mode) == ("Support chat", Mode.ENFORCE)
    for path in ("/keys", f"/keys/{key.id}", "/"):
        assert secret not in (await admin.get(path)).text


async def test_snippets_for_another_gateway(tmp_path: Path) -> None:
    """Snippets name the gateway that the console is configured with."""
    chosen = settings(tmp_path, console_gateway_url="https://llm.example.com/")
    async with running(chosen) as console, Visitor(console.url) as admin:
        await admin.sign_in(console.token)
        text = (await admin.post("/keys", {"name": "app"})).text
        assert "https://llm.example.com/v1/chat/completions" in text


@pytest.mark.parametrize(
    "form", [{"name": ""}, {"name": "x" * 201}, {"name": "a\0b"}, {"name": "app", "mode": "on"}, {}]
)
async def test_a_key_that_cannot_be_made(
    console: Console, admin: Visitor, form: dict[str, object]
) -> None:
    """The form shows what is wrong, and keeps what the administrator typed."""
    answer = await admin.post("/keys", named(form))
    assert answer.status == 422
    assert 'role="alert"' in answer.text
    assert f'value="{form.get("name", "")}"' in answer.text
    assert console.store.keys.list() == []


async def test_the_list_of_keys(console: Console, admin: Visitor) -> None:
    """The list links to each key's settings, and shows revoked keys on request only."""
    first, _ = console.store.keys.create("First & <best>", TABLE.with_original(Mode.AUDIT))
    second, _ = console.store.keys.create("Second")
    console.store.keys.revoke(second.id)
    text = (await admin.get("/keys")).text
    assert "First &amp; &lt;best&gt;" in text
    assert f'href="/keys/{first.id}"' in text
    assert "Audit" in text
    assert "Second" not in text
    assert "Second" in (await admin.get("/keys?revoked")).text


async def test_many_keys(console: Console, admin: Visitor) -> None:
    """Many keys are listed page by page."""
    for number in range(101):
        console.store.keys.create(f"key number {number}")
    first = (await admin.get("/keys")).text
    assert "key number 99<" in first
    assert "key number 100<" not in first
    keys = console.store.keys.list(limit=101)
    forth = f"/keys?sort=created&order=up&after={keys[99].id}"
    back = f"/keys?sort=created&order=up&before={keys[100].id}"
    assert f'href="{html.escape(forth)}"' in first
    second = (await admin.get(forth)).text
    assert "key number 100<" in second
    assert "Next" not in second
    assert f'href="{html.escape(back)}"' in second
    assert "Previous" not in (await admin.get(back)).text
    # Where too few are left before a key, they are shown with those behind it, as the first page.
    again = (await admin.get(f"/keys?sort=created&order=up&before={keys[50].id}")).text
    assert "key number 99<" in again
    console.store.keys.create("key number 101")
    since = (await admin.get(f"/keys?sort=created&order=up&before={keys[100].id}")).text
    assert "key number 0<" in since
    last = console.store.keys.list(after=keys[100].id)[0]
    middle = (await admin.get(f"/keys?sort=created&order=up&before={last.id}")).text
    assert "key number 0<" not in middle
    assert "key number 100<" in middle
    assert "Previous" in middle
    assert "Next" in middle


async def test_revoking(console: Console, admin: Visitor) -> None:
    """The console asks for a confirmation before it revokes a key."""
    key, _ = console.store.keys.create("app")
    asked = await admin.get(f"/keys/{key.id}/revoke")
    assert "cannot be undone" in asked.text
    assert console.store.keys.get(key.id).revoked_at is None
    done = await admin.post(f"/keys/{key.id}/revoke", {"etag": asked.field("etag")})
    assert "is revoked" in done.text
    assert console.store.keys.get(key.id).revoked_at is not None
    assert "can no longer be changed" in (await admin.get(f"/keys/{key.id}")).text


async def test_a_link_that_tells_of_a_revocation(console: Console, admin: Visitor) -> None:
    """A link shows the note of a revocation only for a key that is revoked."""
    key, _ = console.store.keys.create("app")
    assert "is revoked" not in (await admin.get(f"/keys?done={key.id}")).text


async def test_revoking_what_has_changed(console: Console, admin: Visitor) -> None:
    """An administrator who has not seen a change must confirm again."""
    key, _ = console.store.keys.create("app")
    asked = await admin.get(f"/keys/{key.id}/revoke")
    console.store.keys.update(key.id, {"name": "important"})
    answer = await admin.post(f"/keys/{key.id}/revoke", {"etag": asked.field("etag")})
    assert answer.status == 409
    assert "important" in answer.text
    assert console.store.keys.get(key.id).revoked_at is None


async def test_settings(console: Console, admin: Visitor) -> None:
    """The administrator can change all settings.

    Save shows from which revision they are in force, and where.
    """
    key, _ = console.store.keys.create("app")
    page = await admin.get(f"/keys/{key.id}")
    form = [
        ("etag", page.field("etag")),
        ("name", "chat"),
        (f"mode.{ORIGINAL.name}", "audit"),
        (f"override.{ORIGINAL.name}", "locked"),
        ("accept", "user"),
        ("accept", "safety_identifier"),
    ]
    saved = await admin.post(f"/keys/{key.id}", form)
    changed = console.store.keys.get(key.id)
    assert changed.name == "chat"
    assert _set(changed) == Setting(Mode.AUDIT, "", Override.LOCKED)
    assert changed.accept == ("user", "safety_identifier")
    assert f"In force from revision {changed.revision} on: no worker is running now" in saved.text
    back = settings_form("chat", str(changed.revision), mode="")
    await admin.post(f"/keys/{key.id}", back)
    assert _set(console.store.keys.get(key.id)).mode is None


async def test_gateways_that_have_settings(console: Console, admin: Visitor) -> None:
    """Gateways that decide by themselves count, and are named as such."""
    key, _ = console.store.keys.create("app")
    epoch = console.store.keys.changes_since(0).epoch
    behind = Gateway("0" * 12, "g", key.revision, "another")
    there = Gateway("1" * 12, "g", key.revision, epoch)
    console.store.workers.beat("one", "host", key.revision, epoch, [behind, there])
    page = await admin.get(f"/keys/{key.id}?saved")
    assert "2 of 3 have it already: 1 worker and 2 gateways." in page.text
    assert 'hx-trigger="every 1s"' in page.text
    console.store.workers.beat("one", "host", key.revision, epoch, [there], {behind.id})
    line = await admin.get(f"/keys/{key.id}/in-force")
    assert "all have it: 1 worker and 1 gateway." in line.text
    assert "hx-trigger" not in line.text


async def test_where_settings_are_in_force(console: Console, admin: Visitor) -> None:
    """The page shows how many workers have the settings, and updates until all have them."""
    key, _ = console.store.keys.create("app")
    console.store.workers.beat("one", "host", key.revision)
    console.store.workers.beat("two", "host", key.revision - 1)
    page = await admin.get(f"/keys/{key.id}?saved")
    assert "1 of 2 workers has it already" in page.text
    assert 'hx-trigger="every 1s"' in page.text
    console.store.workers.beat("two", "host", key.revision)
    line = await admin.get(f"/keys/{key.id}/in-force")
    assert "all 2 workers have it" in line.text
    assert "hx-trigger" not in line.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": " "}, "1 to 200 printable characters"),
        ({"accept": ""}, "at least one identifier"),
        ({"accept": "nickname"}, "in which no end user can stand"),
        ({"mode": "sometimes"}, "off, audit, enforce"),
        ({"override": ""}, "any, tighten_only or locked"),
    ],
)
async def test_settings_that_cannot_be(
    console: Console, admin: Visitor, changes: dict[str, object], told: str
) -> None:
    """The form shows what is wrong, and keeps everything else that was typed."""
    key, _ = console.store.keys.create("app")
    form = settings_form("typed name", str(key.revision)) | named(changes)
    answer = await admin.post(f"/keys/{key.id}", form)
    assert answer.status == 422
    assert told in answer.text
    assert f'value="{form["name"]}"' in answer.text
    assert console.store.keys.get(key.id) == key


async def test_two_administrators(console: Console, admin: Visitor) -> None:
    """The second administrator sees both values, has lost nothing, and may then save knowingly."""
    key, _ = console.store.keys.create("app")
    page = await admin.get(f"/keys/{key.id}")
    console.store.keys.update(
        key.id, {"name": "theirs", "policies": TABLE.with_original(Mode.AUDIT)}
    )
    mine = settings_form("mine", page.field("etag"), mode="enforce", override="locked")
    answer = await admin.post(f"/keys/{key.id}", mine)
    assert answer.status == 409
    assert "This key was changed after you opened this page" in answer.text
    for shown in ("theirs", "mine", "<bdi>Audit", "<bdi>Enforce", "<bdi>No request"):
        assert shown in answer.text
    assert 'value="locked" checked' in answer.text
    assert console.store.keys.get(key.id).name == "theirs"
    again = await admin.post(f"/keys/{key.id}", mine | {"etag": answer.field("etag")})
    assert "Saved." in again.text
    assert console.store.keys.get(key.id).name == "mine"


async def test_two_administrators_and_a_mistake(console: Console, admin: Visitor) -> None:
    """While correcting the form, an administrator still learns that another has saved."""
    key, _ = console.store.keys.create("app")
    page = await admin.get(f"/keys/{key.id}")
    theirs = console.store.keys.update(
        key.id, {"policies": TABLE.with_original(None, Override.LOCKED)}
    )
    mistake = await admin.post(f"/keys/{key.id}", settings_form(" ", page.field("etag")))
    assert mistake.status == 422
    corrected = await admin.post(f"/keys/{key.id}", settings_form("mine", mistake.field("etag")))
    assert corrected.status == 409
    assert "This key was changed after you opened this page" in corrected.text
    assert console.store.keys.get(key.id) == theirs


async def test_a_form_without_an_etag(console: Console, admin: Visitor) -> None:
    """A form without an etag overwrites and revokes nothing."""
    key, _ = console.store.keys.create("app")
    form = settings_form("mine", "")
    for path in (f"/keys/{key.id}", f"/keys/{key.id}/revoke"):
        assert (await admin.post(path, form)).status == 409
    assert console.store.keys.get(key.id) == key


async def test_a_key_revoked_meanwhile(console: Console, admin: Visitor) -> None:
    """The administrator learns that the key was revoked meanwhile, and nothing is saved."""
    key, _ = console.store.keys.create("app")
    revoked = console.store.keys.revoke(key.id)
    form = settings_form("mine", str(revoked.revision))
    answer = await admin.post(f"/keys/{key.id}", form)
    assert answer.status == 409
    assert "was revoked after you opened" in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "/keys/key_0",
        "/keys/%00",
        "/keys/key_0/revoke",
        "/keys/key_0/simulation",
        "/keys/key_0/history",
        "/logs/x",
        "/logs/%ff%00",
        "/static/nothing",
        "/static/../app.py",
    ],
)
async def test_what_is_not_there(admin: Visitor, path: str) -> None:
    """A page that does not exist answers 404 with an explanation."""
    answer = await admin.get(path)
    assert answer.status == 404
    assert "Traceback" not in answer.text


async def test_no_decisions_yet(console: Console, admin: Visitor) -> None:
    """Every page that shows decisions explains how to get some."""
    console.store.keys.create("app")
    assert "Point a client at the gateway" in (await admin.get("/")).text
    empty = (await admin.get("/logs")).text
    assert "No decisions yet" in empty
    assert "No end users in this time" in (await admin.get("/users")).text
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


async def test_log_details(console: Console, admin: Visitor) -> None:
    """Log Details shows every field, the explanation, and the other requests of the trace."""
    key, _ = console.store.keys.create("Support chat")
    told: dict[str, object] = {
        "key_id": key.id,
        "trace_id": "t-1",
        "source_ip": "10.1.2.3",
        "user_agent": "OpenAI/Python 1.40",
        "request_id": "r-77",
        "method": "POST",
        "path": "/v1/chat/completions",
    }
    one = record(utc_now(), **told)
    other = denied(utc_now(), trace_id="t-1", model="other-model")
    answered = outcome(
        one,
        openai_id="chatcmpl-9",
        organization="org-acme",
        model="gpt-4o-mini-2024",
        first_byte_us=350_000,
        duration_us=2_100_000,
        cached_tokens=3,
    )
    console.store.log.append([one, other, answered])
    text = (await admin.get(f"/logs/{one.id}")).text
    for shown in (
        *("Support chat", "t-1", "10.1.2.3", "OpenAI/Python 1.40", "r-77", "ada", "gpt-4o-mini"),
        *("chat_completion", "/v1/chat/completions", "chatcmpl-9", "org-acme", "gpt-4o-mini-2024"),
        *("350 ms", "2.1 s", "$0.000004500", "Complete", "Allowed: the field user names", one.id),
        *(f'href="/logs/{other.id}"', "other-model", one.time.strftime("%Y-%m-%d %H:%M:%S")),
    ):
        assert shown in text, shown
    blocked = (await admin.get(f"/logs/{other.id}")).text
    for shown in ("Denied by policyd", "422", "policy_enforce_user_ids", "It was blocked"):
        assert shown in blocked


async def test_a_sample(console: Console, admin: Visitor) -> None:
    """A sample decision of the demo is marked as such, in the list and in the details."""
    one = record(utc_now(), sample=True)
    console.store.log.append([one])
    assert ">Sample<" in (await admin.get("/logs")).text
    assert "not a real request" in (await admin.get(f"/logs/{one.id}")).text


async def test_hostile_strings(console: Console, admin: Visitor) -> None:
    """Hostile strings are shown, harmless and whole, on every page."""
    fields = ("end_user", "model", "user_agent", "organization", "request_id", "source_ip")
    one = denied(utc_now(), **dict.fromkeys((*fields, "path", "method", "trace_id"), HOSTILE))
    two = record(utc_now(), end_user=HOSTILE, user_agent=("A" * 255 + "\u202e") * 2)
    answered = outcome(two, openai_id=HOSTILE, model=HOSTILE, organization=HOSTILE)
    console.store.log.append([one, two, answered])
    for path in (f"/logs/{one.id}", f"/logs/{two.id}", "/logs", "/users", "/"):
        answer = await admin.get(path)
        assert answer.status == 200
        assert "<script>alert" not in answer.text
        assert not {"\x1b", "\x07", "\u202e", "\u2028"} & set(answer.text)
        if path not in ("/",):
            assert SHOWN in answer.text
    found = await admin.get("/logs?user=" + quote(HOSTILE))
    assert SHOWN in found.text


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


async def test_end_users(console: Console, admin: Visitor) -> None:
    """The page shows requests, blocks, tokens and cost of each end user, in any order, and the
    share attributed.
    """
    at = utc_now()
    key, _ = console.store.keys.create("app")
    few = [record(at, end_user="few", key_id=key.id)]
    many = [record(at, end_user="many") for _ in range(4)]
    costly = outcome(few[0], input_tokens=1000, output_tokens=234, cost_nano=2_500_000_000)
    console.store.log.append([*few, *many, denied(at), costly])
    text = (await admin.get("/users?period=today")).text
    assert ">83.3%<" in text
    assert "5 of 6 requests in scope" in text
    assert text.index("<bdi>many") < text.index("<bdi>few")
    assert "1,234" in text
    assert "$2.50" in text
    assert 'aria-sort="descending"' in text
    by_cost = (await admin.get("/users?period=today&sort=cost")).text
    assert by_cost.index("<bdi>few") < by_cost.index("<bdi>many")
    by_name = (await admin.get("/users?period=today&sort=user")).text
    assert by_name.index("<bdi>few") < by_name.index("<bdi>many")
    of_key = (await admin.get(f"/users?period=today&key={key.id}")).text
    assert "<bdi>many" not in of_key
    assert ">100%<" in of_key
    long_ago = (await admin.get("/users?period=days&since=2020-01-01&until=2020-02-01")).text
    assert "No end users in this time" in long_ago


async def test_many_users(console: Console, admin: Visitor) -> None:
    """Many users are listed page by page."""
    console.store.log.append([record(utc_now(), end_user=f"u{n:03}") for n in range(120)])
    first = (await admin.get("/users?period=today&sort=user")).text
    assert "u049" in first
    assert "u050" not in first
    link = html.unescape(first.partition('<p class="pages"><a class="button" href="')[2])
    second = (await admin.get(link.partition('"')[0])).text
    assert "u050" in second
    assert "u049" not in second


@pytest.mark.parametrize(
    "query",
    [
        "period=forever",
        "period=days",
        "period=days&since=x&until=y",
        "period=days&since=2026-02-01&until=2026-01-01",
        "period=days&since=1900-01-01&until=2026-01-01",
        "period=days&since=9999-12-31&until=9999-12-31",
        "period=days&since=9998-12-31&until=9999-12-30",
        "key=nonsense",
        "key=%00",
    ],
)
async def test_users_of_nonsense(admin: Visitor, query: str) -> None:
    """A malformed filter gets a message."""
    answer = await admin.get(f"/users?{query}")
    assert answer.status == 400
    assert 'role="alert"' in answer.text


async def test_an_order_that_is_none(console: Console, admin: Visitor) -> None:
    """An unknown order is taken for the default one."""
    console.store.log.append([record(utc_now())])
    for query in (
        "sort=x&order=y",
        "offset=-1",
        "offset=x",
        "offset=99999999999999999999",
    ):
        assert (await admin.get(f"/users?{query}")).status == 200


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


async def test_refused_keys(console: Console, admin: Visitor) -> None:
    """Refused keys have their own number, sources and samples, and count as no policy's blocks."""
    at = utc_now()
    assert "None in this time" in (await admin.get("/refused")).text
    minute = int(at.timestamp()) // 60
    console.store.log.append(
        [RefusedKeyCount("a", n, minute, source, 1, 1200, 3) for n, source in enumerate(SOURCES)]
    )
    assert "3,612 requests came without a valid API key" in (await admin.get("/")).text
    one = RefusedKey(
        decision_id(at), RefusedKeyReason.UNKNOWN, "192.0.2.1", "POST", HOSTILE, HOSTILE
    )
    console.store.log.append([record(at), one])
    text = (await admin.get("/")).text
    assert 'id="figure-refused">3,612</a>' in text
    assert 'id="figure-denied"' not in text
    assert 'id="figure-requests">1</a>' in text
    for period in ("", "24h", "7d", "30d", "90d", "nonsense"):
        text = (await admin.get(f"/refused?period={period}")).text
        assert ">3,612<" in text
        assert text.count(SHOWN) == 2
        assert all(shown in text for shown in ("192.0.2.1", "All other addr", "Address not known"))
    assert "counted apart" in (await admin.get("/logs")).text
    found = await admin.get(f"/logs?find={one.id}")
    assert f"/refused#r-{one.id}" in found.text


async def test_refused_keys_of_an_older_policyd(console: Console, admin: Visitor) -> None:
    """Refused keys of an older policyd stay in the log under a name of their own."""
    refused = denied(utc_now(), key_id="", mode=None, source=None, in_scope=False, status=403)
    console.store.log.append([refused])
    for path in ("/logs", f"/logs/{refused.id}"):
        text = (await admin.get(path)).text
        assert "Key refused" in text
        assert 'v3">Blocked<' not in text
    assert "No decision matches" in (await admin.get("/logs?decision=denied")).text


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


MEMBERS: list[dict[str, Any]] = [
    *({"source": one} for one in Source),
    *({"ignored": one} for one in Ignored),
    *({"mode": one} for one in Mode),
    *({"user_state": one, "end_user": ""} for one in UserState),
    *({"verdict": one, "flags": flags} for one in Verdict for flags in FLAG_SETS),
    {"mode": None, "source": None},
]


@pytest.mark.slow
async def test_details_of_all_there_can_be(console: Console, admin: Visitor) -> None:
    """Log Details has words for every state of a decision and its outcome."""
    at = utc_now()
    ended = [record(at) for _ in Ending]
    entries = [record(at, **given) for given in MEMBERS]
    console.store.log.append(entries + ended)
    console.store.log.append(
        [outcome(one, ending=ending) for one, ending in zip(ended, Ending, strict=True)]
    )
    entries += ended
    for one in entries:
        assert (await admin.get(f"/logs/{one.id}")).status == 200, one
    for path in ("/logs", "/", "/users", "/logs/export.csv", "/logs/export.jsonl"):
        assert (await admin.get(path)).status == 200


async def test_a_user_that_is_not_named(console: Console, admin: Visitor) -> None:
    """A user whose identifier is unknown is told apart from no user."""
    told, without = record(utc_now(), end_user=""), denied(utc_now())
    console.store.log.append([told, without])
    for one, words_ in ((told, "A user, not named"), (without, "No user")):
        text = (await admin.get(f"/logs/{one.id}")).text
        assert words_ in text
    text = (await admin.get("/logs")).text
    assert text.count(">Not named<") == text.count(">No user<") == 1
    assert "one not named (1)" in (await admin.get("/users")).text


async def test_what_is_told_of_end_users(console: Console, admin: Visitor) -> None:
    """The page shows flags, errors and latency of each end user, and sorts by them."""
    at = utc_now()
    entries = [record(at, end_user=name) for name in ("ada", "ada", "bob")]
    flagged = record(at, end_user="bob", flags="invalid_override")
    console.store.log.append([*entries, flagged])
    ends = [{"status": 500, "duration_us": 2_000_000}, {"duration_us": 1_000_000}, {}]
    console.store.log.append([outcome(one, **end) for one, end in zip(entries, ends, strict=True)])
    for sort, first in (("errors", "ada"), ("flagged", "bob"), ("latency", "ada")):
        text = (await admin.get(f"/users?sort={sort}")).text
        rows = text.partition('<caption class="off-screen">End users')[2]
        assert rows.partition("<bdi>")[2].startswith(first), sort
    assert ">1.5 s<" in text
    assert "<bdi>gpt-4o-mini</bdi>" in text
    assert "<code>key_1</code>" in text
    assert ">Blocked<" not in text


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


async def test_the_store_is_away(tmp_path: Path) -> None:
    """Without the store every page answers 503 with Retry-After, and none shows a traceback."""
    chosen = settings(tmp_path)
    prepare(chosen)
    away = Store(f"sqlite:///{tmp_path}/nowhere/policyd.db")
    async with (
        ConsoleServer(chosen, away) as server,
        Visitor(f"http://{server.address}") as visitor,
    ):
        for path in ("/", "/keys", "/logs", "/users", "/sign-in", "/first-password?code=x"):
            answer = await visitor.get(path)
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "5"
            assert "cannot reach the database" in answer.text
        assert (await visitor.post("/sign-in", {"password": "x"})).status == 503
    away.close()


async def test_on_postgresql(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """Every page works on PostgreSQL too, hostile strings and odd filters included."""
    with postgresql.database() as url:
        chosen = settings(tmp_path, database_url=url)
        async with running(chosen) as console, Visitor(console.url) as admin:
            await admin.sign_in(console.token)
            key, _ = console.store.keys.create("app")
            one = denied(utc_now(), key_id=key.id, end_user=HOSTILE + "\0", trace_id="t-1")
            console.store.log.append([one, record(utc_now(), trace_id="t-1"), outcome(one)])
            for path in (
                *("/", "/keys", f"/keys/{key.id}", f"/keys/{key.id}/simulation", "/users"),
                *("/logs", "/logs?user=%00x&flag=invalid_override", f"/logs/{one.id}", "/account"),
                *("/users?period=today&sort=cost", "/logs/export.csv", "/logs/rows", "/refused"),
                *("/users?sort=latency", "/users?sort=errors", "/logs?find=%00", "/logs?find=t-1"),
            ):
                assert (await admin.get(path)).status == 200, path
            assert SHOWN in (await admin.get(f"/logs/{one.id}")).text
            form = settings_form("chat", str(key.revision))
            assert "Saved." in (await admin.post(f"/keys/{key.id}", form)).text
            for path in ("/keys/%00", "/logs/%00"):
                assert (await admin.get(path)).status == 404, path
            for path in ("/users?key=%00", "/logs?key=%00", "/logs?trace=%00x"):
                assert (await admin.get(path)).status == 400, path


def test_buckets() -> None:
    """Hours fall into buckets that begin with the period, and empty buckets are there too."""
    since = datetime(2026, 11, 1, tzinfo=UTC)
    period = periods.Period("days", since, since + timedelta(days=7))
    assert period.step == timedelta(hours=3)
    counted = [(since + timedelta(hours=hour), Counts(requests=1)) for hour in (0, 1, 2, 3, 167)]
    buckets = period.buckets([*counted, (since + timedelta(days=9), Counts(requests=1))])
    assert len(buckets) == 56
    assert [counts.requests for _, counts in buckets[:3]] == [3, 1, 0]
    assert periods.total(buckets).requests == 5


def test_bars() -> None:
    """The bars stand on each other and reach as high as their share of the scale."""
    at = datetime(2026, 11, 1, tzinfo=UTC)
    series = (
        charts.Series("a", "A", lambda counts: counts.attributed),
        charts.Series("b", "B", lambda counts: counts.unattributed),
    )
    buckets = [(at, Counts(attributed=5, unattributed=3)), (at + timedelta(hours=1), Counts())]
    chart = charts.stacked("Requests", series, buckets, timedelta(hours=1))
    assert chart.top == "8"
    bottom, top = chart.columns[0].bars
    assert (bottom.y + bottom.height, top.y + top.height) == (100, bottom.y)
    assert (bottom.height, top.height) == (62.5, 37.5)
    assert chart.columns[1].bars == ()
    assert charts.stacked("None", series, buckets[1:], timedelta(hours=1)).is_empty


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (None, "\u2014"),
        (0, "$0.00"),
        (1, "<$0.0001"),
        (123_456, "$0.0001"),
        (2_500_000_000, "$2.50"),
    ],
)
def test_money(nano: int | None, shown: str) -> None:
    """Small amounts are not rounded down to nothing."""
    assert labels.money(nano) == shown


def test_shares() -> None:
    """All but one of a million is not all of them."""
    assert labels.share(999_999, 1) == "99.9%"
    assert labels.share(1, 999_999) == "0.1%"
    assert labels.share(3, 0) == "100%"
    assert labels.share(0, 3) == "0%"
    assert labels.share(0, 0) == "\u2014"


async def test_the_documentation(admin: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page links to the documentation that the installed package names, if it names any."""
    message = Message()
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: message)
    documentation.url.cache_clear()
    assert "the folder <code>docs</code>" in (await admin.get("/keys")).text
    message["Project-URL"] = "Documentation, https://docs.example/policyd"
    documentation.url.cache_clear()
    assert 'href="https://docs.example/policyd"' in (await admin.get("/keys")).text
    documentation.url.cache_clear()


async def test_searching_end_users(console: Console, admin: Visitor) -> None:
    """End users are searched by a part, in any letter case, and sorted; the text is taken as it
    is, and stays with the sorting and on further pages."""
    names = ["Ada Lovelace", "grace@example.com", "100%", *(f"user-{n:03d}" for n in range(60))]
    console.store.log.append([record(utc_now(), end_user=name) for name in names])
    for text, shown, hidden in (
        ("LOVE", "Ada Lovelace", "user-001"),
        ("%25", "100%", "Ada Lovelace"),
        ("_", "No end user contains this text", "Ada Lovelace"),
        ("%00", "No end user contains this text", "Ada Lovelace"),
    ):
        table = (await admin.get(f"/users?find={text}")).text.partition("<tbody>")[2]
        assert shown in table, text
        assert hidden not in table, text
    first = (await admin.get("/users?find=user-&sort=user")).text
    url = html.unescape(
        first.partition('class="pages"')[2].partition('href="')[2].partition('"')[0]
    )
    assert "find=user-" in url
    second = (await admin.get(url)).text
    assert "user-059" in second
    assert "user-000" not in second.partition("<tbody>")[2]


async def test_links_from_end_users(console: Console, admin: Visitor) -> None:
    """Each number of the page of end users links to exactly the rows that it counts."""
    key, _ = console.store.keys.create("Support chat")
    rows = [record(utc_now(), key_id=key.id, end_user="test") for _ in range(3)]
    rows += [record(utc_now(), key_id=key.id, end_user="ada@example.com") for _ in range(2)]
    rows += [record(utc_now(), key_id=key.id, end_user="ada")]
    old = [record(utc_now() - timedelta(days=20), key_id=key.id, end_user="test")]
    console.store.log.append(
        [*rows, *old, denied(utc_now(), key_id=key.id), outcome(rows[0], status=500)]
    )
    page = html.unescape((await admin.get("/users")).text)
    for told, count in (
        ("3 requests say <code>user = <bdi>test</bdi></code>", 3),
        ("2 requests say <code>user = <bdi>ada@example.com</bdi></code>", 2),
    ):
        assert told in page
        url = page.partition(told)[0].rpartition('href="')[2].partition('"')[0]
        assert (await admin.get(url)).text.count('class="whole-row"') == count
    errors = re.findall(r'href="([^"]*answer=error[^"]*)"', page)
    assert len(errors) == 1
    assert (await admin.get(errors[0])).text.count('class="whole-row"') == 1
    (unknown,) = re.findall(r'href="([^"]*nouser=1[^"]*)"', page)
    assert (await admin.get(unknown)).text.count('class="whole-row"') == 1
    assert "2 requests name an e-mail address as the user" in page


def test_the_styles_are_whole() -> None:
    """Every block of the styles is closed: an open one would take all that follows with it."""
    styles = (HERE / "static" / "console.css").read_text()
    depth = 0
    for line in styles.splitlines():
        assert not (line.startswith("@media") and depth), line
        depth += line.count("{") - line.count("}")
    assert depth == 0
