"""The acceptance suite that every store passes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from policyd.command.database_url import sqlite_file
from policyd.engine.settings import KeyChange, KeySettings, Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.errors import (
    EtagMismatch,
    InvalidArgument,
    KeyNotFound,
    KeyRevoked,
    SettingsError,
    StoreUnavailable,
)
from policyd.keys import api_key
from policyd.policies import TABLE
from policyd.store import Store, metadata
from policyd.store.administrator import Credentials

BOTH = ("user", "safety_identifier")
UNSET = TABLE.with_original(None, Override.ANY)
ENFORCE = TABLE.with_original(Mode.ENFORCE)


def test_a_new_key(store: Store) -> None:
    """A key has the form of docs/contract.md, section 5, and the settings that it was made with."""
    settings = TABLE.with_original(Mode.AUDIT, Override.LOCKED)
    key, secret = store.keys.create("app", settings, BOTH)
    assert secret.startswith("up-")
    assert len(secret) == 51
    assert secret[3:].isalnum()
    assert (key.policies, key.accept) == (settings, BOTH)
    assert key.created_at == key.updated_at
    assert key.created_at.tzinfo is not None
    assert key.revoked_at is None
    assert store.keys.get(key.id) == key


def test_a_key_without_settings(store: Store) -> None:
    """Such a key has the default mode, accepts both identifiers, and lets any request override."""
    key, _ = store.keys.create("app")
    assert (key.policies, key.accept) == (UNSET, BOTH)


def test_what_a_key_accepts_is_its_own(store: Store, url: str) -> None:
    """A key keeps what it accepts when another version with another default opens the store."""
    key, _ = store.keys.create("app", accept=("user",))
    with closing(Store(url)) as again:
        again.migrate()
        assert again.keys.get(key.id).accept == ("user",)
        assert again.keys.update(key.id, {"policies": ENFORCE}).accept == ("user",)


# SQLAlchemy reads no index that is on an expression, and this test needs none.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_the_key_itself_is_not_kept(store: Store, url: str, tmp_path: Path) -> None:
    """The key is neither in the tables nor in the files where SQLite keeps them."""
    _, secret = store.keys.create("app")
    if url.startswith("sqlite"):
        files = [file.read_bytes() for file in tmp_path.iterdir()]
        assert any(api_key.digest(secret) in content for content in files)
        assert not any(secret.encode() in content for content in files)
        assert not any(secret[3:19].encode() in content for content in files)
    content = _content(url)
    assert repr(api_key.digest(secret)) in content
    assert secret[3:19] not in content


def _content(url: str) -> str:
    """Everything that the tables hold."""
    engine = sa.create_engine(url)
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        rows = [connection.execute(table.select()).all() for table in tables.sorted_tables]
    engine.dispose()
    return repr(rows)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a" * 201, "\x1b[31m"])
def test_bad_names(store: Store, name: str) -> None:
    """A name has 1 to 200 printable characters."""
    with pytest.raises(InvalidArgument):
        store.keys.create(name)
    assert store.keys.list() == []


def test_bad_accept(store: Store) -> None:
    """A key accepts one of the known identifiers at least."""
    for accept in ((), ("email",), ("user", "")):
        with pytest.raises(InvalidArgument):
            store.keys.create("app", accept=accept)


def test_an_update(store: Store) -> None:
    """An update changes only what it names, and counts a revision."""
    key, _ = store.keys.create("app", ENFORCE)

    def locked(current: Settings) -> Settings:
        return TABLE.with_original(TABLE.original_of(current).mode, Override.LOCKED, current)

    changed = store.keys.update(key.id, {"policies": locked, "name": "service"})
    assert changed.name == "service"
    assert changed.policies == TABLE.with_original(Mode.ENFORCE, Override.LOCKED)
    assert changed.revision == key.revision + 1
    assert changed.updated_at >= key.updated_at
    assert store.keys.update(key.id, {"policies": ()}).policies == UNSET


def test_settings_of_further_policies(store: Store) -> None:
    """A key has a setting of each policy, in the order of docs/contract.md, section 7, and updates
    keep the others.
    """
    limit = ("max_tokens", Setting(Mode.ENFORCE, "500", Override.LOCKED))
    models = ("disabled_models", Setting(Mode.AUDIT, "gpt-4*,é"))
    key, _ = store.keys.create("app", (models, *ENFORCE, limit))
    original = TABLE.with_original(Mode.ENFORCE, Override.ANY)
    assert key.policies == (limit, *original, models)
    [change] = store.keys.changes_since(0).changed
    assert change.settings
    assert change.settings.policies == key.policies
    assert store.keys.update(key.id, {"name": "other"}).policies == key.policies
    changed = store.keys.update(
        key.id, {"policies": lambda now: TABLE.with_original(None, None, now)}
    )
    assert changed.policies == (limit, *UNSET, models)
    assert store.keys.update(key.id, {"policies": (limit,)}).policies == (limit, *UNSET)
    with pytest.raises(InvalidArgument, match="there is no policy 'colour'"):
        store.keys.update(key.id, {"policies": (("colour", Setting(Mode.OFF)),)})
    with pytest.raises(InvalidArgument, match="max_tokens"):
        store.keys.create("app", (("max_tokens", Setting(Mode.ENFORCE, "-1")),))


def test_settings_of_a_newer_version(store: Store, url: str) -> None:
    """A policy that this version does not know is read as it is, and stays until it is removed."""
    key, _ = store.keys.create("app", ENFORCE)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        text = '{"colour":[3,"blue",null]}'
        connection.execute(sa.text("UPDATE api_keys SET policies = :text"), {"text": text})
    engine.dispose()
    unknown = ("colour", Setting(Mode.ENFORCE, "blue"))
    assert unknown in store.keys.get(key.id).policies
    assert unknown in store.keys.update(key.id, {"name": "other"}).policies
    limit = ("max_tokens", Setting(Mode.AUDIT, "5"))
    changed = store.keys.update(key.id, {"policies": lambda now: (*now, limit)})
    assert {unknown, limit} < set(changed.policies)
    left = store.keys.update(key.id, {"policies": lambda now: now[:-1]})
    assert unknown not in left.policies


def test_eight_places(store: Store) -> None:
    """A key can accept as many places as there may be, with long names."""
    places = tuple(f"header:x-{number}-{'a' * 60}" for number in range(8))
    key, _ = store.keys.create("app", accept=places)
    assert store.keys.get(key.id).accept == places


def test_bad_updates(store: Store) -> None:
    """A bad update is rejected with its reason, and changes nothing."""
    key, _ = store.keys.create("app")
    with pytest.raises(InvalidArgument, match="nothing to change"):
        store.keys.update(key.id, {})
    with pytest.raises(InvalidArgument, match="no changeable field digest"):
        store.keys.update(key.id, {"digest": b""})
    for unknown in ("key_0", "", "\0", "'; --"):
        with pytest.raises(KeyNotFound):
            store.keys.update(unknown, {"name": "x"})
    with pytest.raises(EtagMismatch):
        store.keys.update(key.id, {"name": "x"}, etag="1")
    assert store.keys.get(key.id) == key


def test_the_second_of_two_editors_is_told(store: Store) -> None:
    """An update of settings that have changed since they were read raises EtagMismatch."""
    key, _ = store.keys.create("app")
    store.keys.update(key.id, {"name": "first"}, etag=str(key.revision))
    with pytest.raises(EtagMismatch):
        store.keys.update(key.id, {"name": "second"}, etag=str(key.revision))
    assert store.keys.get(key.id).name == "first"


def test_revoking(store: Store) -> None:
    """A revoked key stays revoked, cannot be changed, and is listed on demand only."""
    key, _ = store.keys.create("app")
    revoked = store.keys.revoke(key.id)
    assert revoked.revoked_at is not None
    assert store.keys.revoke(key.id) == revoked
    with pytest.raises(KeyRevoked):
        store.keys.update(key.id, {"name": "x"})
    assert store.keys.list() == []
    assert store.keys.list(show_revoked=True) == [revoked]


def test_pages(store: Store) -> None:
    """Pages follow each other without gap or repeat, oldest first."""
    made = [store.keys.create(f"key {number}")[0] for number in range(7)]
    first = store.keys.list(limit=3)
    second = store.keys.list(limit=3, after=first[-1].id)
    third = store.keys.list(limit=3, after=second[-1].id)
    assert first + second + third == made
    assert store.keys.list(after=made[-1].id) == []
    with pytest.raises(KeyNotFound):
        store.keys.list(after="key_0")


def test_changes(store: Store) -> None:
    """The changes after a revision include revoked keys as tombstones."""
    key, secret = store.keys.create("app", ENFORCE, accept=BOTH)
    digest = api_key.digest(secret)
    settings = KeySettings(key.id, key.policies, BOTH)
    everything = store.keys.changes_since(0)
    assert everything.revision == key.revision
    assert tuple(everything.changed) == (KeyChange(digest, settings),)
    assert store.keys.changes_since(key.revision).changed == ()
    store.keys.revoke(key.id)
    later = store.keys.changes_since(key.revision)
    assert later.revision == key.revision + 1
    assert tuple(later.changed) == (KeyChange(digest, None),)


def test_a_database_put_back_from_a_copy(store: Store, url: str) -> None:
    """Where the revision went back, everything is read again, and missing keys are removed."""
    key, _ = store.keys.create("old")
    assert store.keys.changes_since(0).everything
    assert not store.keys.changes_since(key.revision - 1).everything
    back = store.keys.changes_since(key.revision + 5)
    assert back.everything
    assert back.revision == key.revision
    assert [change.settings.key_id for change in back.changed if change.settings] == [key.id]


def test_writers_at_once(store: Store) -> None:
    """Changes that are made at the same time all count, each under a revision of its own."""
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: store.keys.create(f"key {number}")[0], range(40)))
    assert len({key.revision for key in keys}) == 40
    assert store.keys.changes_since(0).revision == max(key.revision for key in keys)


@pytest.mark.slow
def test_a_reader_beside_writers_misses_nothing(store: Store) -> None:
    """A reader that follows the changes while others write has, in the end, all of them."""
    seen: dict[bytes, KeySettings | None] = {}
    done = threading.Event()

    def follow() -> None:
        last = 0
        while not done.is_set() or store.keys.changes_since(last).changed:
            changes = store.keys.changes_since(last)
            seen.update({change.digest: change.settings for change in changes.changed})
            last = changes.revision

    with ThreadPoolExecutor(5) as pool:
        following = pool.submit(follow)
        secrets = list(pool.map(lambda number: store.keys.create(str(number))[1], range(60)))
        done.set()
        following.result()
    assert seen.keys() == {api_key.digest(secret) for secret in secrets}


def test_migrating_at_once(url: str) -> None:
    """Several processes may bring a new database to its form at the same time."""
    stores = [Store(url) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(Store.migrate, stores))
    assert stores[0].keys.list() == []
    for store in stores:
        store.close()


# On SQLite, SQLAlchemy compares no index that is on an expression.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based")
def test_the_migrations_make_the_tables_that_the_store_uses(store: Store, url: str) -> None:
    """The migrated database and the store's own idea of it are the same, but for what tells of
    its form, and for PostgreSQL's partitions."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_of_the_store})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def is_of_the_store(name: str | None, kind: str, parents: object) -> bool:
    return kind != "table" or not str(name).startswith(("schema_", "alembic_", "decisions_"))


def test_a_newer_database(store: Store, url: str) -> None:
    """A database that a newer policyd has used is rejected, and left alone."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreUnavailable, match="newer policyd"):
        store.migrate()


def test_no_database(tmp_path: Path) -> None:
    """The error names a database that cannot be opened, or is none, without a password."""
    with pytest.raises(StoreUnavailable, match="unable to open"):
        Store(f"sqlite:///{tmp_path}/no/such/folder.db").migrate()
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Store(f"sqlite:///{tmp_path}/text.db").migrate()
    for url in ("nonsense", "mysql9://admin:hunter2@host/x", ""):
        with pytest.raises(SettingsError) as caught:
            Store(url)
        assert "hunter2" not in str(caught.value)


def test_the_administrator(store: Store) -> None:
    """There is no password at first; setting one, and ending the sessions, begins a new epoch."""
    first = store.administrator.get()
    assert first.password_hash == ""
    epoch = store.administrator.set_password("hash", first.epoch)
    assert epoch != first.epoch
    assert store.administrator.get() == Credentials("hash", epoch or 0)
    store.administrator.end_sessions()
    assert store.administrator.get().epoch not in (first.epoch, epoch)
    assert store.administrator.get().password_hash == "hash"


def test_two_first_passwords(store: Store) -> None:
    """If several passwords are set by one link, one counts."""
    epoch = store.administrator.get().epoch
    with ThreadPoolExecutor(8) as pool:
        hashes = [f"hash {number}" for number in range(8)]
        done = list(pool.map(lambda one: store.administrator.set_password(one, epoch), hashes))
    (won,) = [one for one, new in zip(hashes, done, strict=True) if new is not None]
    assert store.administrator.get().password_hash == won


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite:///policyd.db", "sqlite:////var/lib/policyd/a b.db", "sqlite+pysqlite:///x.db"),
        *(
            "sqlite:///x.db?timeout=5&mode=ro",
            "sqlite:///a%20b.db",
            "sqlite:///C:/x.db",
            "sqlite://",
        ),
        *("sqlite:///", "sqlite:///:memory:", "sqlite:///a@b/c:d.db", "sqlite:///x/y\u3000"),
        *("postgresql://policyd:a%2Fb@host:5432/name", "postgresql+psycopg:///x?host=/run/sqlite"),
    ],
)
def test_the_file_of_a_database(url: str) -> None:
    """The file's path is known without SQLAlchemy, and is the one that SQLAlchemy opens."""
    parsed = sa.make_url(url)
    named = parsed.database if parsed.get_backend_name() == "sqlite" else None
    opened = None if named in (None, "", ":memory:") else Path(named)
    assert sqlite_file(url) == opened
