"""Keys and defaults that are declared together."""

import multiprocessing
import os
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from policyd.engine.settings import ServerDefaults, Setting
from policyd.engine.states import Mode, Override
from policyd.errors import InvalidArgument
from policyd.keys import api_key
from policyd.keys.audit import Action
from policyd.keys.settings import Applied, DeclaredKey
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE
from policyd.store import Store, audit

ENFORCE = TABLE.with_original(Mode.ENFORCE, Override.ANY)
AUDIT = TABLE.with_original(Mode.AUDIT)
DIGEST = sha256(b"made elsewhere").hexdigest()
OTHER = sha256(b"another").hexdigest()


def actions(applied: Applied) -> list[tuple[str, str]]:
    return [
        (str(one.action), one.after.name if one.after else "defaults") for one in applied.changes
    ]


def revision_of(store: Store) -> int:
    return store.keys.changes_since(0).revision


def test_what_is_declared_is_there(store: Store) -> None:
    """Keys are made, changed and left alone by their names, and the defaults set, all in one
    revision."""
    same, _ = store.keys.create("same", ENFORCE)
    other, _ = store.keys.create("other", ENFORCE)
    kept, _ = store.keys.create("kept")
    end = datetime(2030, 1, 1, tzinfo=UTC)
    before = revision_of(store)
    declared = [
        DeclaredKey("new", ENFORCE, ("user",), end),
        DeclaredKey("same", ENFORCE),
        DeclaredKey("other", AUDIT),
        DeclaredKey("digest", digest=DIGEST),
    ]
    applied = store.apply(declared, ServerDefaults(AUDIT), by="cli ada@host")
    assert applied.revision == revision_of(store) == before + 1
    assert actions(applied) == [
        ("key.create", "new"),
        ("key.update", "other"),
        ("key.create", "digest"),
        ("defaults.update", "defaults"),
    ]
    new, changed, digest, defaults = applied.changes
    assert new.after == store.keys.find("new")
    assert (new.after.policies, new.after.accept, new.after.expires_at) == (ENFORCE, ("user",), end)
    assert api_key.digest(new.secret)
    assert (changed.before, changed.after) == (other, store.keys.get(other.id))
    assert digest.secret == ""
    assert store.keys.in_force(bytes.fromhex(DIGEST))
    assert store.keys.get(same.id) == same
    assert store.keys.get(kept.id) == kept
    assert defaults.defaults_before == ServerDefaults()
    assert store.defaults() == ServerDefaults(AUDIT, revision=applied.revision)
    records = store.audit.list()[:4]
    assert {one.revision for one in records} == {applied.revision}
    assert {one.by for one in records} == {"cli ada@host"}
    # Once more, there is nothing to do.
    again = store.apply(declared, ServerDefaults(AUDIT))
    assert again == Applied((), applied.revision)
    assert revision_of(store) == applied.revision


def test_what_is_not_declared_goes(store: Store) -> None:
    """With prune, keys that are not declared are revoked, and their names are free."""
    gone, _ = store.keys.create("gone")
    stays, _ = store.keys.create("stays")
    applied = store.apply([DeclaredKey("stays")], None, prune=True)
    assert actions(applied) == [("key.revoke", "gone")]
    assert store.keys.get(gone.id).revoked_at
    assert store.keys.list() == [stays]
    assert store.defaults() is None
    with pytest.raises(InvalidArgument, match="every key would be revoked"):
        store.apply([], None, prune=True)


def test_a_dry_run_changes_nothing(store: Store) -> None:
    """A dry run reports the same changes, without secrets and without IDs for keys that it does not
    create."""
    store.keys.create("other", ENFORCE)
    store.keys.create("gone")
    declared = [DeclaredKey("new"), DeclaredKey("other")]
    before = (store.keys.list(), store.audit.list(), revision_of(store))
    told = store.apply(declared, ServerDefaults(AUDIT), prune=True, dry_run=True)
    assert (store.keys.list(), store.audit.list(), revision_of(store)) == before
    assert store.defaults() is None
    assert told.revision == before[2]
    new = next(one for one in told.changes if one.action == Action.KEY_CREATE)
    assert new.after
    assert (new.secret, new.after.id, new.after.suffix) == ("", "", "")
    made = store.apply(declared, ServerDefaults(AUDIT), prune=True)
    assert actions(made) == actions(told)


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ([DeclaredKey("a", (("nonsense", Setting(Mode.ENFORCE)),))], "'a': there is no policy"),
        ([DeclaredKey("a", (("max_tokens", Setting(Mode.ENFORCE, "x")),))], "'a': max_tokens"),
        ([DeclaredKey("a"), DeclaredKey(" a ")], "the name 'a'"),
        ([DeclaredKey("a", digest="x")], "'a': a digest is"),
        ([DeclaredKey("a", digest=DIGEST), DeclaredKey("b", digest=DIGEST.upper())], "the digest"),
        ([DeclaredKey("other", digest=DIGEST)], "'other': the digest"),
        ([DeclaredKey("new", digest=DIGEST)], "'new': the digest"),
        ([DeclaredKey("a\x1b[31m")], "printable"),
        ([DeclaredKey("a\nb")], "printable"),
        ([DeclaredKey("")], "printable"),
        ([DeclaredKey("a", accept=("nowhere",))], "'a':"),
        ([DeclaredKey("a", accept=())], "'a':"),
        ([DeclaredKey("a", expires_at=datetime(2030, 1, 1))], "time zone"),  # noqa: DTZ001  # It lacks one.
    ],
)
def test_nothing_of_a_bad_declaration(store: Store, declared: list[DeclaredKey], why: str) -> None:
    """If a declaration has one mistake, none of it is applied, even if the mistake is in the last
    key."""
    store.keys.create("taken", digest=DIGEST)
    other, _ = store.keys.create("other")
    before = (store.keys.list(), store.audit.list(), revision_of(store))
    with pytest.raises(InvalidArgument, match=why):
        store.apply([DeclaredKey("first"), *declared], ServerDefaults(AUDIT), prune=True)
    assert (store.keys.list(), store.audit.list(), revision_of(store)) == before
    assert store.defaults() is None
    assert store.keys.get(other.id) == other


@pytest.mark.parametrize(
    "defaults",
    [
        ServerDefaults((("nonsense", Setting(Mode.ENFORCE)),)),
        ServerDefaults((), ("x-user",), ()),
        ServerDefaults((), (), ("grpc",)),
        ServerDefaults((), ("x-user",), ("carrier pigeon",)),
        ServerDefaults((), ("authorization",), ("grpc",)),
        ServerDefaults((), ("X User",), ("grpc",)),
    ],
)
def test_bad_defaults(store: Store, defaults: ServerDefaults) -> None:
    with pytest.raises(InvalidArgument):
        store.apply([DeclaredKey("a")], defaults)
    assert store.keys.list() == []


def test_a_name_that_two_keys_have(store: Store) -> None:
    """Where an older version made two keys of a name, a declaration cannot tell which is meant."""
    store.keys.create("app")
    store.keys.create("other")
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE api_keys SET name = 'app'")
    with pytest.raises(InvalidArgument, match="2 keys have the name 'app'"):
        store.apply([DeclaredKey("app")], None)


async def test_a_declared_digest_takes_the_place(store: Store) -> None:
    """A declared digest holds: the previous secret ends at once, and a secret that has ended stays
    ended."""
    key, secret = store.keys.create("app")
    table = StoredKeyTable(store.keys.changes_since)
    await table.refresh()

    async def in_force(*digests: str) -> list[bool]:
        await table.refresh()
        return [table.settings(bytes.fromhex(one)) is not None for one in digests]

    own = api_key.digest(secret).hex()
    store.apply([DeclaredKey("app", digest=DIGEST)], None)
    assert await in_force(own, DIGEST) == [False, True]
    assert store.keys.get(key.id).suffix == ""
    store.apply([DeclaredKey("app", digest=OTHER)], None)
    assert await in_force(own, DIGEST, OTHER) == [False, False, True]
    with pytest.raises(InvalidArgument, match="no longer in force"):
        store.apply([DeclaredKey("app", digest=DIGEST)], None)
    # Without a digest the secret stays; a rotation is taken back by the digest before.
    assert store.apply([DeclaredKey("app")], None).changes == ()
    _, new = store.keys.rotate(key.id, timedelta(days=1))
    store.apply([DeclaredKey("app", digest=OTHER)], None)
    assert await in_force(api_key.digest(new).hex(), OTHER) == [False, True]
    assert store.keys.get(key.id).previous_until is None


def test_the_digest_of_a_secret_whose_time_is_over(store: Store) -> None:
    """A secret that a rotation kept for a while comes back by no declaration after that."""
    key, _ = store.keys.create("app", digest=DIGEST)
    store.keys.rotate(key.id, timedelta(microseconds=1))
    time.sleep(0.01)
    assert store.keys.in_force(bytes.fromhex(DIGEST)) is None
    with pytest.raises(InvalidArgument, match="no longer in force"):
        store.apply([DeclaredKey("app", digest=DIGEST)], None)
    assert store.keys.in_force(bytes.fromhex(DIGEST)) is None


def test_the_digest_of_a_revoked_key(store: Store) -> None:
    """A revoked secret comes back by no declaration."""
    store.apply([DeclaredKey("app", digest=DIGEST)], None)
    store.keys.revoke(store.keys.find("app").id)
    with pytest.raises(InvalidArgument, match="no longer in force"):
        store.apply([DeclaredKey("app", digest=DIGEST)], None)


def test_defaults_alone(store: Store) -> None:
    """Defaults are replaced as a whole, and an empty declaration of them takes them back."""
    first = ServerDefaults((("max_tokens", Setting(Mode.ENFORCE, "500")),), ("x-user",), ("http",))
    store.apply([], first)
    store.apply([], ServerDefaults(AUDIT))
    applied = store.apply([], ServerDefaults())
    assert store.defaults() == ServerDefaults(revision=applied.revision)
    newest = store.audit.list(action=Action.DEFAULTS_UPDATE)
    assert [one.before.get("end_user_headers") for one in newest] == [None, ["x-user"], []]
    assert newest[2].after["policies"] == {
        "max_tokens": {"mode": "enforce", "value": "500", "override": None}
    }


def _apply_and_die(url: str) -> None:
    store = Store(url)

    def die(*_: Any) -> None:
        os._exit(9)

    # At the end of the transaction, when all of it but its commit is done.
    vars(audit)["add"] = die
    store.apply([DeclaredKey("a"), DeclaredKey("b")], ServerDefaults(AUDIT), prune=True)


def test_a_process_that_dies_between(store: Store, url: str) -> None:
    """Where the process dies before the commit, nothing has changed, and the next one succeeds."""
    key, _ = store.keys.create("gone")
    process = multiprocessing.get_context("spawn").Process(target=_apply_and_die, args=(url,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    with closing(Store(url)) as again:
        assert again.keys.list() == [key]
        assert again.defaults() is None
        applied = again.apply([DeclaredKey("a")], ServerDefaults(AUDIT), prune=True)
        assert actions(applied)[0] == ("key.revoke", "gone")
