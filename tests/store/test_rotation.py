"""Keys that rotate and expire, as a store has them and as workers follow them."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
import sqlalchemy as sa

from policyd.engine.settings import KeySettings
from policyd.errors import (
    EtagMismatch,
    InvalidArgument,
    KeyNotFound,
    KeyRevoked,
    NameTaken,
    OlderServers,
)
from policyd.keys import api_key
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.store import MAX_KEEP, Store

DAY = timedelta(days=1)
NOTHING = timedelta()


async def table_of(store: Store, at: datetime | None = None) -> StoredKeyTable:
    """A table that has followed the store, by a clock that stands at that moment."""
    moment = (at or datetime.now(UTC)).timestamp()
    table = StoredKeyTable(store.keys.changes_since, clock=lambda: moment)
    await table.refresh()
    return table


def id_of(table: StoredKeyTable, secret: str) -> str | None:
    found = table.settings(api_key.digest(secret))
    return found.key_id if found else None


async def test_two_secrets_for_a_while(store: Store) -> None:
    """After a rotation both secrets are the key's; the one before ends when it was said to."""
    key, old = store.keys.create("app")
    followed = await table_of(store)
    rotated, new = store.keys.rotate(key.id, DAY, key.etag)
    assert rotated.id == key.id
    assert (rotated.suffix, key.suffix) == (new[-4:], old[-4:])
    assert rotated.previous_until
    await followed.refresh()
    later = rotated.previous_until
    for table in (followed, await table_of(store)):
        assert id_of(table, old) == id_of(table, new) == key.id
    for at, is_old_in_force in ((later - timedelta(seconds=1), True), (later, False)):
        table = await table_of(store, at)
        assert id_of(table, new) == key.id
        assert id_of(table, old) == (key.id if is_old_in_force else None)


async def test_a_secret_that_ends_at_once(store: Store) -> None:
    """No table keeps a secret that a rotation ends: neither one that knew it, nor a new one."""
    key, old = store.keys.create("app")
    followed = await table_of(store)
    rotated, new = store.keys.rotate(key.id, NOTHING)
    assert rotated.previous_until is None
    await followed.refresh()
    for table in (followed, await table_of(store)):
        assert (id_of(table, old), id_of(table, new)) == (None, key.id)
    assert store.keys.in_force(api_key.digest(old)) is None


async def test_rotating_again(store: Store) -> None:
    """A key has two secrets at most: with the next rotation, the one that was kept ends."""
    key, first = store.keys.create("app")
    followed = await table_of(store)
    _, second = store.keys.rotate(key.id, DAY)
    await followed.refresh()
    _, third = store.keys.rotate(key.id, DAY)
    await followed.refresh()
    for table in (followed, await table_of(store)):
        assert [id_of(table, one) for one in (first, second, third)] == [None, key.id, key.id]


async def test_revoking_ends_both_secrets(store: Store) -> None:
    """A revoked key has none, and is rotated no more."""
    key, old = store.keys.create("app")
    _, new = store.keys.rotate(key.id, DAY)
    followed = await table_of(store)
    store.keys.revoke(key.id)
    await followed.refresh()
    for table in (followed, await table_of(store)):
        assert (id_of(table, old), id_of(table, new)) == (None, None)
    with pytest.raises(KeyRevoked):
        store.keys.rotate(key.id, DAY)


@pytest.mark.parametrize("keep", [-timedelta(seconds=1), MAX_KEEP + timedelta(seconds=1)])
def test_bad_times_to_keep(store: Store, keep: timedelta) -> None:
    key, _ = store.keys.create("app")
    with pytest.raises(InvalidArgument, match="90 days"):
        store.keys.rotate(key.id, keep)
    assert store.keys.get(key.id) == key


def test_a_rotation_of_something_else(store: Store) -> None:
    """A rotation of no key, or of one that has changed, makes nothing."""
    key, _ = store.keys.create("app")
    changed = store.keys.update(key.id, {"name": "other"})
    with pytest.raises(EtagMismatch):
        store.keys.rotate(key.id, DAY, key.etag)
    with pytest.raises(KeyNotFound):
        store.keys.rotate("key_none", DAY)
    assert store.keys.get(key.id) == changed


async def test_an_expired_key(store: Store) -> None:
    """An expired key is in force no longer, and again once its time is put off."""
    end = datetime.now(UTC) + DAY
    key, secret = store.keys.create("app", expires_at=end)
    assert key.expires_at == end
    assert id_of(await table_of(store, end - DAY / 2), secret) == key.id
    followed = await table_of(store, end)
    assert id_of(followed, secret) is None
    store.keys.update(key.id, {"expires_at": end + DAY})
    await followed.refresh()
    assert id_of(followed, secret) == key.id
    assert store.keys.update(key.id, {"expires_at": None}).expires_at is None
    found = store.keys.in_force(api_key.digest(secret))
    assert found == KeySettings(key.id, key.policies, key.accept)
    store.keys.update(key.id, {"expires_at": datetime.now(UTC) - DAY})
    assert store.keys.in_force(api_key.digest(secret)) is None


async def test_an_expired_key_has_no_secret_before(store: Store) -> None:
    """The secret before a rotation ends with its key at the latest."""
    end = datetime.now(UTC) + DAY / 2
    key, old = store.keys.create("app", expires_at=end)
    store.keys.rotate(key.id, DAY)
    assert id_of(await table_of(store, end), old) is None


def test_a_moment_without_a_zone(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="time zone"):
        store.keys.create("app", expires_at=datetime(2030, 1, 1))  # noqa: DTZ001  # That is the point.


def test_names_are_taken_once(store: Store) -> None:
    """A name is that of one key, until this is revoked."""
    key, _ = store.keys.create("app")
    other, _ = store.keys.create("other")
    for taken in ("app", " app "):
        with pytest.raises(NameTaken, match=key.id):
            store.keys.create(taken)
        with pytest.raises(NameTaken, match=key.id):
            store.keys.update(other.id, {"name": taken})
    assert store.keys.update(key.id, {"name": "app"}).name == "app"
    assert store.keys.find("app").id == key.id
    store.keys.revoke(key.id)
    with pytest.raises(KeyNotFound):
        store.keys.find("app")
    again, _ = store.keys.create("app")
    assert store.keys.find("app") == again


def test_names_that_were_taken_twice(store: Store, url: str) -> None:
    """A database in which two keys have a name goes on: they are changed by their IDs, and a third
    one is not made."""
    first, _ = store.keys.create("app")
    second, _ = store.keys.create("other")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE api_keys SET name = 'app'"))
    engine.dispose()
    with pytest.raises(InvalidArgument) as problem:
        store.keys.find("app")
    assert first.id in str(problem.value)
    assert second.id in str(problem.value)
    with pytest.raises(NameTaken):
        store.keys.create("app")
    assert store.keys.update(second.id, {"accept": ("user",), "name": "app"}).accept == ("user",)
    assert store.keys.update(second.id, {"name": "new"}).name == "new"
    assert store.keys.find("app").id == first.id


@pytest.mark.parametrize("name", ["app\x00", "app\x1b[31m", "a" * 1000, "", "\u202eapp"])
def test_finding_by_a_bad_name(store: Store, name: str) -> None:
    with pytest.raises(KeyNotFound):
        store.keys.find(name)


def test_two_administrators_make_one_name(store: Store) -> None:
    """If several administrators create a key of one name at the same time, one succeeds."""

    def make(_: int) -> int:
        with suppress(NameTaken):
            store.keys.create("app")
            return 1
        return 0

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(make, range(8))) == 1
    assert len(store.keys.list()) == 1


async def test_two_administrators_rotate_at_once(store: Store) -> None:
    """Each of several rotations at the same time gives a secret, and the last two secrets are in
    force."""
    key, old = store.keys.create("app")
    with ThreadPoolExecutor(4) as threads:
        secrets = list(threads.map(lambda _: store.keys.rotate(key.id, DAY)[1], range(4)))
    table = await table_of(store)
    assert sum(id_of(table, one) == key.id for one in secrets) == 2
    assert id_of(table, old) is None


def test_a_digest_in_place_of_a_secret(store: Store) -> None:
    """A key may be made of a digest: policyd then never knows its secret."""
    digest = sha256(b"made elsewhere").hexdigest()
    key, secret = store.keys.create("app", digest=digest.upper())
    assert (secret, key.suffix) == ("", "")
    found = store.keys.in_force(api_key.digest("made elsewhere"))
    assert found
    assert found.key_id == key.id
    with pytest.raises(InvalidArgument, match="another key's secret"):
        store.keys.create("other", digest=digest)
    _, new = store.keys.rotate(key.id, DAY)
    for used in (digest, api_key.digest(new).hex()):
        with pytest.raises(InvalidArgument, match="another key's secret"):
            store.keys.create("other", digest=used)
    store.keys.rotate(key.id, NOTHING)
    for used in (digest, api_key.digest(new).hex()):
        with pytest.raises(InvalidArgument, match="no longer in force"):
            store.keys.create("other", digest=used)


@pytest.mark.parametrize(
    "digest",
    ["", "x", "0" * 63, "0" * 65, "g" * 64, "0x" + "0" * 62, "\N{ARABIC-INDIC DIGIT ZERO}" * 64],
)
def test_digests_that_are_none(store: Store, digest: str) -> None:
    with pytest.raises(InvalidArgument, match="64 hexadecimal digits"):
        store.keys.create("app", digest=digest)
    assert store.keys.list() == []


def test_a_server_of_an_older_version(store: Store, url: str) -> None:
    """While one runs, no key is rotated or made to expire: it would let in what has ended."""
    key, _ = store.keys.create("app")
    store.workers.beat("new", "here", 1, "")
    store.workers.beat("old", "there", 1, "")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE workers SET form = NULL WHERE id = 'old'"))
    engine.dispose()
    soon = datetime.now(UTC) + DAY
    with pytest.raises(OlderServers, match="on there"):
        store.keys.rotate(key.id, DAY)
    with pytest.raises(OlderServers):
        store.keys.update(key.id, {"expires_at": soon})
    with pytest.raises(OlderServers):
        store.keys.create("other", expires_at=soon)
    assert store.keys.list() == [key]
    store.workers.leave("old")
    assert store.keys.rotate(key.id, DAY)
