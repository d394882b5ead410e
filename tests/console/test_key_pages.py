"""The pages of API keys: made, listed, set, revoked, and changed by two administrators at once."""

import html
from pathlib import Path

import pytest

from policyd.engine.settings import ApiKey, Setting, setting_of
from policyd.engine.states import Mode, Override
from policyd.policies import TABLE
from policyd.store.workers import Gateway
from tests.support.consoles import (
    Console,
    Visitor,
    named,
    running,
    settings,
    settings_form,
)

ORIGINAL = TABLE.original


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
