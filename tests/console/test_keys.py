"""API keys in the console: found, sorted, changed several at once, rotated, and their history."""

import html
import re
from datetime import UTC, datetime, timedelta

import pytest

from policyd.engine.settings import ApiKey, Setting, setting_of
from policyd.engine.states import Mode, Override
from policyd.keys.audit import Action
from policyd.policies import TABLE
from tests.support.consoles import Console, Page, Visitor
from tests.support.records import record

ORIGINAL = TABLE.original.name
LIMIT = "max_tokens"


def _made(console: Console, *names: str) -> list[ApiKey]:
    return [console.store.keys.create(name)[0] for name in names]


def _listed(page: Page) -> list[str]:
    """The names of the keys in the list, in its order."""
    return re.findall(r'<th scope="row" class="name"><a [^>]*><bdi>(.*?)</bdi>', page.text)


def _hidden(page: Page) -> list[tuple[str, str]]:
    """The hidden fields of a page."""
    found = re.findall(r'<input type="hidden" name="(.*?)" value="(.*?)">', page.text)
    return [(name, html.unescape(value)) for name, value in found]


def _mode(console: Console, key: ApiKey, policy: str = ORIGINAL) -> Setting:
    return setting_of(console.store.keys.get(key.id).policies, policy)


async def test_finding_a_key(console: Console, admin: Visitor) -> None:
    """A key is found by a part of its name, by its ID and by the end of its secret."""
    chat, _ = _made(console, "Support chat", "Search")
    _, secret = console.store.keys.create("by its end")
    assert _listed(await admin.get("/keys?find=CHAT")) == ["Support chat"]
    assert _listed(await admin.get(f"/keys?find={chat.id}")) == ["Support chat"]
    assert "by its end" in _listed(await admin.get(f"/keys?find={secret[-4:]}"))
    assert secret[-4:] in (await admin.get("/keys")).text
    none = await admin.get("/keys?find=%25%00nothing")
    assert "No key matches" in none.text
    assert "Create the first key" not in none.text


async def test_sorting_keys(console: Console, admin: Visitor) -> None:
    """The list is sorted by name, by age, and by when a key was used last, which it shows."""
    beta, _ = _made(console, "beta", "Alpha")
    at = datetime.now(UTC) - timedelta(hours=3)
    console.store.log.append([record(at, key_id=beta.id)])
    assert _listed(await admin.get("/keys")) == ["beta", "Alpha"]
    assert _listed(await admin.get("/keys?sort=name")) == ["Alpha", "beta"]
    used = await admin.get("/keys?sort=used")
    assert _listed(used) == ["beta", "Alpha"]
    assert f"{at:%Y-%m-%d %H:%M}" in used.text
    assert "Not in the log" in used.text
    assert 'aria-sort="descending"' in used.text
    odd = await admin.get("/keys?sort=nonsense&order=%00&offset=9999999999")
    assert odd.status == 200


async def test_one_policy_of_several_keys(console: Console, admin: Visitor) -> None:
    """Several keys get one policy's setting after a summary, in one revision; others stay."""
    keys = _made(console, "one", "two", "three")
    locked = TABLE.with_original(Mode.AUDIT, Override.LOCKED)
    console.store.keys.update(keys[0].id, {"policies": locked})
    chosen = "&".join(f"key={key.id}" for key in keys[:2])
    asked = await admin.get(f"/keys/change?{chosen}")
    assert "2 keys" in asked.text
    keys_given = [one for one in _hidden(asked) if one[0] == "key"][:2]
    typed = [("do", "set"), ("policy", ORIGINAL), ("mode", "enforce"), ("override", "keep")]
    summary = await admin.post("/keys/change", [*keys_given, *typed])
    assert "Change 2 keys" in summary.text
    assert _mode(console, keys[1]).mode is None
    done = await admin.post("/keys/change", [*_hidden(summary), ("do", "set")])
    assert "2 keys are changed, in one revision" in done.text
    assert _mode(console, keys[0]) == Setting(Mode.ENFORCE, "", Override.LOCKED)
    assert _mode(console, keys[1]).mode is Mode.ENFORCE
    assert _mode(console, keys[2]).mode is None
    revisions = {console.store.keys.get(key.id).revision for key in keys[:2]}
    assert len(revisions) == 1
    by = {one.by for one in console.store.audit.list(action=Action.KEY_UPDATE, limit=2)}
    assert by == {"console 127.0.0.1"}


async def test_a_value_for_several_keys(console: Console, admin: Visitor) -> None:
    """A value is checked before the summary, and written in its usual form."""
    (key,) = _made(console, "one")
    given = [("key", f"{key.id} {key.etag}"), ("do", "set"), ("policy", LIMIT), ("mode", "audit")]
    for value, told in (("many", "A limit is"), ("", "")):
        wrong = await admin.post("/keys/change", [*given, ("value", value), ("override", "any")])
        assert wrong.status == 422
        assert told in html.unescape(wrong.text)
        assert 'id="e-value"' in wrong.text
    typed = [*given, ("value", " 500 "), ("override", "locked"), ("confirmed", "yes")]
    await admin.post("/keys/change", typed)
    assert _mode(console, key, LIMIT) == Setting(Mode.AUDIT, "500", Override.LOCKED)
    key = console.store.keys.get(key.id)
    given[0] = ("key", f"{key.id} {key.etag}")
    typed = [*given[:3], ("mode", "default"), ("override", "any"), ("confirmed", "yes")]
    await admin.post("/keys/change", typed)
    assert _mode(console, key, LIMIT) == Setting()


async def test_revoking_several_keys(console: Console, admin: Visitor) -> None:
    """Several keys are revoked after a summary, which says when each was used last."""
    keys = _made(console, "one", "two")
    console.store.log.append([record(datetime.now(UTC), key_id=keys[0].id)])
    given = [("key", f"{key.id} {key.etag}") for key in keys]
    summary = await admin.post("/keys/change", [*given, ("do", "revoke")])
    assert "cannot be undone" in summary.text
    assert "Not in the log" in summary.text
    assert not any(console.store.keys.get(key.id).revoked_at for key in keys)
    done = await admin.post("/keys/change", [*_hidden(summary), ("do", "revoke")])
    assert "2 keys are revoked" in done.text
    assert all(console.store.keys.get(key.id).revoked_at for key in keys)
    again = await admin.get(f"/keys/change?key={keys[0].id}")
    assert "No key is selected" in again.text


async def test_a_key_that_changed_meanwhile(console: Console, admin: Visitor) -> None:
    """Where one of several keys has changed since the summary, none is changed, and the summary is
    made anew."""
    keys = _made(console, "one", "two")
    given = [("key", f"{key.id} {key.etag}") for key in keys]
    console.store.keys.update(keys[1].id, {"name": "renamed"})
    for do in ("set", "revoke"):
        form = [*given, ("do", do), ("mode", "enforce"), ("override", "keep"), ("confirmed", "yes")]
        answer = await admin.post("/keys/change", form)
        assert answer.status == 409
        assert "renamed" in answer.text
        assert _mode(console, keys[0]).mode is None
        assert console.store.keys.get(keys[0].id).revoked_at is None


@pytest.mark.parametrize("form", [[], [("key", "")], [("key", "key_0 1"), ("do", "revoke")]])
async def test_no_key_to_change(admin: Visitor, form: list[tuple[str, str]]) -> None:
    """Without a key that can be changed, the page says so."""
    answer = await admin.post("/keys/change", form)
    assert "No key is" in answer.text


async def test_no_mode_is_chosen(console: Console, admin: Visitor) -> None:
    """No mode is chosen in advance, lest a slip of the finger set it."""
    (key,) = _made(console, "one")
    asked = await admin.get(f"/keys/change?key={key.id}")
    assert "checked>" not in asked.text
    form = [("key", f"{key.id} {key.etag}"), ("do", "set"), ("confirmed", "yes")]
    answer = await admin.post("/keys/change", form)
    assert answer.status == 422
    assert "Choose a mode" in answer.text


async def test_a_name_that_is_taken(console: Console, admin: Visitor) -> None:
    """A name that another key has is said beside its field, where a key is made and changed."""
    one, two = _made(console, "one", "two")
    made = await admin.post("/keys", {"name": "one"})
    form = {"name": "one", "accept": "user", "etag": two.etag}
    changed = await admin.post(f"/keys/{two.id}", form)
    for answer in (made, changed):
        assert answer.status == 422
        told = answer.text.partition('id="e-name">')[2].partition("</p>")[0]
        assert one.id in told
        assert 'value="one"' in answer.text
    assert console.store.keys.get(two.id).name == "two"


async def test_expiry(console: Console, admin: Visitor) -> None:
    """A key's settings say when it expires; the list marks one that does, and one that has."""
    (key,) = _made(console, "one")
    form = {"name": "one", "accept": "user", "etag": key.etag}
    for typed, told in (("soon", "such as"), ("2001-01-01T00:00", "has passed")):
        wrong = await admin.post(f"/keys/{key.id}", form | {"expires": typed})
        assert wrong.status == 422
        assert told in wrong.text.partition('id="e-expires">')[2].partition("</p>")[0]
    at = (datetime.now(UTC) + timedelta(days=2)).replace(second=0, microsecond=0)
    saved = await admin.post(f"/keys/{key.id}", form | {"expires": f"{at:%Y-%m-%dT%H:%M}"})
    assert "Saved." in saved.text
    assert console.store.keys.get(key.id).expires_at == at
    assert f"Expires {at:%Y-%m-%d}" in (await admin.get("/keys")).text
    etag = (await admin.get(f"/keys/{key.id}")).field("etag")
    await admin.post(f"/keys/{key.id}", form | {"etag": etag, "expires": ""})
    assert console.store.keys.get(key.id).expires_at is None
    console.store.keys.update(key.id, {"expires_at": datetime.now(UTC) - timedelta(hours=1)})
    assert "Expired" in (await admin.get("/keys")).text
    # A form without the field, as an older page has, leaves it as it is.
    kept = console.store.keys.get(key.id)
    await admin.post(f"/keys/{key.id}", form | {"etag": kept.etag, "name": "renamed"})
    assert console.store.keys.get(key.id).expires_at == kept.expires_at


async def test_rotation(console: Console, admin: Visitor) -> None:
    """A key gets a new secret, shown once; the page says how long the one before holds."""
    key, before = console.store.keys.create("one")
    asked = await admin.get(f"/keys/{key.id}/rotate")
    assert before[-4:] in asked.text
    form = {"etag": asked.field("etag"), "keep": "7d"}
    done = await admin.post(f"/keys/{key.id}/rotate", form)
    assert done.status == 201
    secret = done.text.partition('<code id="key">')[2][:51]
    assert secret != before
    now = console.store.keys.get(key.id)
    assert now.suffix == secret[-4:]
    assert now.previous_until
    assert timedelta(days=6) < now.previous_until - datetime.now(UTC) < timedelta(days=8)
    assert f"{now.previous_until:%Y-%m-%d %H:%M}" in done.text
    assert "Two secrets until" in (await admin.get(f"/keys/{key.id}")).text
    stale = await admin.post(f"/keys/{key.id}/rotate", form)
    assert (stale.status, "was changed" in stale.text) == (409, True)
    form = {"etag": now.etag, "keep": "for ever"}
    assert (await admin.post(f"/keys/{key.id}/rotate", form)).status == 422
    ended = await admin.post(f"/keys/{key.id}/rotate", {"etag": now.etag, "keep": "0"})
    assert ended.status == 201
    assert console.store.keys.get(key.id).previous_until is None


async def test_snippets_at_any_time(console: Console, admin: Visitor) -> None:
    """The snippets are there at any time, with a variable in place of the secret."""
    key, secret = console.store.keys.create("one")
    page = await admin.get(f"/keys/{key.id}/use")
    assert "$POLICYD_KEY" in page.text
    assert secret not in page.text
    assert secret[-4:] in page.text
    console.store.keys.revoke(key.id)
    assert "$POLICYD_KEY" not in (await admin.get(f"/keys/{key.id}/use")).text


async def test_the_main_switch_is_first(console: Console, admin: Visitor) -> None:
    """The settings begin with the main switch, Enforce User IDs."""
    (key,) = _made(console, "one")
    text = (await admin.get(f"/keys/{key.id}")).text
    panels = re.findall(r'id="policy-(\w+)"', text)
    assert panels[0] == ORIGINAL
    assert sorted(panels) == sorted(policy.name for policy in TABLE.policies)
    assert text.index(f'id="policy-{ORIGINAL}"') < text.index('id="accepted"')


async def test_the_history_of_a_key(console: Console, admin: Visitor) -> None:
    """A key's page has its changes: what was, what is, and the actor; of no other key."""
    one, other = _made(console, "one", "another key")
    console.store.keys.update(one.id, {"name": "renamed"}, by="cli ada@host")
    policies = (*TABLE.with_original(Mode.ENFORCE), (LIMIT, Setting(Mode.AUDIT, "500")))
    console.store.keys.update(one.id, {"policies": policies}, by="console 192.0.2.7")
    text = (await admin.get(f"/keys/{one.id}/history")).text
    for told in ("cli ada@host", "console 192.0.2.7", "Key changed", "Key created"):
        assert told in text
    assert re.search(r"<del><bdi>one</bdi></del>.*<ins><bdi>renamed</bdi>", text)
    assert re.search(r"Enforce Max Tokens</bdi></span> <ins><bdi>Audit: 500", text)
    assert other.name not in text
    for number in range(60):
        console.store.keys.update(one.id, {"name": f"name {number}"})
    first = await admin.get(f"/keys/{one.id}/history")
    older = first.text.partition("/history?before=")[2].partition('"')[0]
    second = await admin.get(f"/keys/{one.id}/history?before={older}")
    assert "Key created" not in first.text
    assert "Key created" in second.text
    assert (await admin.get("/keys/key_0/history")).status == 404
