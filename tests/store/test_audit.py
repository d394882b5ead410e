"""The audit trail: one record for each change, in its transaction, and no secret in any."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from policyd.engine.settings import Setting
from policyd.engine.states import Mode, Override
from policyd.errors import EtagMismatch, NameTaken
from policyd.keys import api_key
from policyd.keys.audit import Action
from policyd.policies import TABLE
from policyd.store import Store, audit

ENFORCE = TABLE.with_original(Mode.ENFORCE)
ORIGINAL = TABLE.original.name
TOKENS = ("max_tokens", Setting(Mode.ENFORCE, "500"))


def test_each_change_has_its_record(store: Store) -> None:
    """A record has the actor, the key, what changed before and after, and the revision."""
    key, secret = store.keys.create("app", ENFORCE, by="cli ada@host")
    store.keys.update(key.id, {"name": "other", "policies": (TOKENS,)}, by="console 192.0.2.7")
    rotated, new = store.keys.rotate(key.id, timedelta(hours=1), by="admin api 192.0.2.8")
    gone = store.keys.revoke(key.id, by="cli ada@host")
    store.keys.revoke(key.id)
    store.audit.add(Action.SIGN_IN, "console 192.0.2.7")
    sign_in, revoked, rotation, update, created = store.audit.list()
    assert (created.action, created.by) == ("key.create", "cli ada@host")
    assert (created.key_id, created.key_name, created.revision) == (key.id, "app", key.revision)
    assert created.before == {}
    assert created.after["policies"][ORIGINAL]["mode"] == "enforce"
    assert (update.action, update.by, update.key_name) == (
        "key.update",
        "console 192.0.2.7",
        "other",
    )
    assert (update.before["name"], update.after["name"]) == ("app", "other")
    assert update.before["policies"]["max_tokens"] is None
    assert update.after["policies"]["max_tokens"]["value"] == "500"
    assert update.before.keys() == update.after.keys() == {"name", "policies"}
    assert (rotation.action, rotation.by) == ("key.rotate", "admin api 192.0.2.8")
    assert rotation.after["suffix"] == new[-4:]
    assert rotation.revision == rotated.revision
    assert (revoked.action, revoked.revision) == ("key.revoke", gone.revision)
    assert revoked.after.keys() == {"revoked_at"}
    assert (sign_in.action, sign_in.key_id, sign_in.revision) == ("sign_in", "", 0)
    text = str(store.audit.list())
    for hidden in (secret, new, api_key.digest(secret).hex(), secret[3:20]):
        assert hidden not in text


def test_what_fails_leaves_no_record(store: Store) -> None:
    """A change that is refused is none, and has no record."""
    key, _ = store.keys.create("app")
    with pytest.raises(EtagMismatch):
        store.keys.update(key.id, {"accept": ("user",)}, "1-0")
    with pytest.raises(NameTaken):
        store.keys.create("app")
    assert [one.action for one in store.audit.list()] == ["key.create"]


def test_filters_and_pages(store: Store) -> None:
    """The trail is read newest first, in pages, by key, action and time."""
    keys = [store.keys.create(f"app {number}")[0] for number in range(3)]
    store.keys.update(keys[0].id, {"accept": ("user",)})
    everything = store.audit.list()
    assert [one.id for one in everything] == [4, 3, 2, 1]
    assert store.audit.list(limit=2) == everything[:2]
    assert store.audit.list(before_id=everything[1].id, limit=2) == everything[2:]
    assert store.audit.list(key_id=keys[0].id) == [everything[0], everything[3]]
    assert store.audit.list(action="key.update") == everything[:1]
    assert store.audit.list(key_id=keys[1].id, action="key.update") == []
    newest = everything[0].at
    assert store.audit.list(since=newest)[0] == everything[0]
    assert everything[0] not in store.audit.list(until=newest)
    for odd in ("\0", "x" * 1000, "'"):
        assert store.audit.list(key_id=odd) == store.audit.list(action=odd) == []


def test_an_actor_that_would_steer_a_terminal(store: Store) -> None:
    """An actor's name is kept in one printable line."""
    store.audit.add(Action.SIGN_IN, "console \x1b[31m\n\0" + "x" * 1000)
    (record,) = store.audit.list()
    assert record.by.isprintable()
    assert len(record.by) == 200


def test_numbers_are_those_of_commits(store: Store) -> None:
    """Records that are written at once have a number each, and no number is missing."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: store.audit.add(Action.SIGN_IN, str(n)), range(20)))
    found = store.audit.list()
    assert [one.id for one in found] == list(range(20, 0, -1))
    assert {one.by for one in found} == {str(n) for n in range(20)}


def test_the_trail_has_an_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest records go beyond the bound; failed attempts to sign in push out no others."""
    monkeypatch.setattr(audit, "MAX_RECORDS", 8)
    monkeypatch.setattr(audit, "MAX_FAILED", 2)
    store.keys.create("app")
    for number in range(5):
        store.audit.add(Action.SIGN_IN_FAILED, f"console {number}")
    found = store.audit.list()
    assert [one.by for one in found] == ["console 4", "console 3", ""]
    for number in range(8):
        store.audit.add(Action.SIGN_IN, str(number))
    assert [one.by for one in store.audit.list()] == [str(n) for n in reversed(range(8))]


def test_overrides_in_words(store: Store) -> None:
    key, _ = store.keys.create("app")
    locked = TABLE.with_original(Mode.AUDIT, Override.LOCKED)
    store.keys.update(key.id, {"policies": locked})
    record = store.audit.list()[0]
    assert record.after["policies"] == {
        ORIGINAL: {"mode": "audit", "value": "", "override": "locked"}
    }
    assert record.before["policies"][ORIGINAL]["mode"] is None
