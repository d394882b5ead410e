"""A revision is more than its number: whether a database still has it, and has the same one."""

import logging
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from policyd.engine.settings import KeySettings
from policyd.engine.states import Mode
from policyd.errors import StoreUnavailable, WrongDatabase
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE
from policyd.store import Store, checkpoints, damage
from policyd.store.checkpoints import Checkpoints, Counts, Written
from policyd.store.engine import make_file, open_engine
from tests.support.postgresql import PostgreSQL
from tests.support.records import record


def execute(url: str, *statements: str, **values: object) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement), values)
    engine.dispose()


def mode_of(settings: KeySettings) -> Mode | None:
    return TABLE.original_of(settings.policies).mode


def test_each_revision_has_an_epoch(store: Store) -> None:
    """A reader that returns the epoch gets the later changes, and no more."""
    first = store.keys.changes_since(0, "")
    assert first.everything
    assert first.epoch
    store.keys.create("one")
    second = store.keys.changes_since(first.revision, first.epoch)
    assert not second.everything
    assert len(second.changed) == 1
    assert second.epoch not in ("", first.epoch)
    same = store.keys.changes_since(second.revision, second.epoch)
    assert (same.everything, same.changed, same.epoch) == (False, (), second.epoch)
    for number in range(3):
        store.keys.create(f"more {number}")
    third = store.keys.changes_since(second.revision, second.epoch)
    assert (third.everything, len(third.changed)) == (False, 3)
    assert len(store.keys.changes_since(first.revision, first.epoch).changed) == 4


@pytest.mark.parametrize("more", [-1, 0, 1, 5])
def test_another_history(store: Store, new_database: str, more: int) -> None:
    """Lost changes are noticed at a lower, the same and a higher revision."""
    for number in range(3):
        store.keys.create(f"kept {number}")
    key, _ = store.keys.create("changed later")
    known = store.keys.update(key.id, {"policies": TABLE.with_original(Mode.OFF)}).revision
    epoch = store.keys.changes_since(0).epoch
    # Like a backup from before the last change.
    execute(
        new_database,
        "UPDATE revision SET value = :back",
        "UPDATE api_keys SET mode = NULL, revision = :back WHERE mode IS NOT NULL",
        "DELETE FROM revision_epochs WHERE revision > :back",
        back=known - 2,
    )
    for _ in range(2 + more):
        store.keys.update(key.id, {"policies": TABLE.with_original(Mode.AUDIT)})
    found = store.keys.changes_since(known, epoch)
    assert found.everything
    assert found.revision == known + more
    modes = {mode_of(change.settings) for change in found.changed if change.settings}
    assert modes == {None, Mode.AUDIT}


def test_changes_of_an_older_version(store: Store, new_database: str) -> None:
    """An older version knows no epochs, and the database gives its changes one all the same."""
    key, _ = store.keys.create("one")
    known = store.keys.changes_since(0)
    execute(
        new_database,
        "UPDATE revision SET value = value + 1",
        "UPDATE api_keys SET mode = 1, revision = :next",
        next=known.revision + 1,
    )
    found = store.keys.changes_since(known.revision, known.epoch)
    assert not found.everything
    assert [mode_of(change.settings) for change in found.changed if change.settings] == [Mode.OFF]
    assert found.epoch not in ("", known.epoch)
    # A reader that has seen that misses no change, either.
    store.keys.update(key.id, {"policies": TABLE.with_original(Mode.AUDIT)})
    assert not store.keys.changes_since(found.revision, found.epoch).everything


def test_what_is_long_ago(store: Store, new_database: str) -> None:
    """The number of epochs is bounded, and a reader that is further behind reads everything."""
    store.keys.create("one")
    known = store.keys.changes_since(0)
    execute(new_database, "UPDATE revision SET value = value + 10001")
    assert store.keys.changes_since(known.revision, known.epoch).everything
    engine = open_engine(new_database)
    with engine.connect() as connection:
        count = sa.text("SELECT count(*) FROM revision_epochs")
        assert connection.execute(count).scalar_one() == 1
    engine.dispose()


async def test_a_table_that_follows(
    store: Store, new_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The table has the database's settings, and tells that it read everything anew."""
    caplog.set_level(logging.INFO, "policyd.keys.stored_key_table")
    store.keys.create("one", TABLE.with_original(Mode.OFF))
    table = StoredKeyTable(store.keys.changes_since)
    await table.refresh()
    [(digest, settings)] = table._settings.items()
    assert mode_of(settings) is Mode.OFF
    assert caplog.records == []
    revision = table.revision
    execute(
        new_database,
        "UPDATE api_keys SET mode = 3",
        "UPDATE revision SET value = value - 1",
        "UPDATE revision SET value = value + 1",
    )
    await table.refresh()
    found = table.settings(digest)
    assert found
    assert (mode_of(found), table.revision) == (Mode.ENFORCE, revision)
    assert "put back from a backup" in caplog.text


def test_workers_of_another_history(store: Store, new_database: str) -> None:
    """A worker with a revision of the same number but another history does not have this one."""
    store.keys.create("one")
    known = store.keys.changes_since(0)
    store.workers.beat("new", "host", known.revision, known.epoch)
    store.workers.beat("old", "host", known.revision)
    store.workers.beat("lost", "host", known.revision, "another")
    store.workers.beat("ahead", "host", known.revision + 7, "another")
    had = {one.id: one.revision for one in store.workers.list()}
    assert had == {"new": known.revision, "old": known.revision, "lost": 0, "ahead": 0}


# The database itself


def test_another_installation(store: Store, new_database: str) -> None:
    """No method reads from another installation's database, or writes to it."""
    store.expect("0" * 32)
    for use in (
        lambda: store.keys.changes_since(0, ""),
        lambda: store.keys.create("one"),
        lambda: store.log.append([record()]),
        lambda: store.log.lose({"process": 1}),
        lambda: store.workers.beat("one", "host", 1),
        store.keys.list,
        store.workers.list,
        store.log.status,
    ):
        with pytest.raises(WrongDatabase, match="restart policyd"):
            use()
    with closing(Store(new_database)) as other:
        other.expect(other.identity())
        assert other.log.status().decisions == 0
        assert other.keys.list() == []


def test_a_database_without_our_tables(new_database: str) -> None:
    """An empty database in the place of the right one is another one."""
    make_file(new_database)
    with closing(Store(new_database)) as store:
        store.expect("0" * 32)
        with pytest.raises(WrongDatabase, match="no tables of policyd"):
            store.keys.changes_since(0, "")


def test_a_postgresql_that_takes_no_changes(postgresql: PostgreSQL) -> None:
    """The start and each change report that the database accepts no writes."""
    with postgresql.database() as url:
        store = Store(url)
        store.migrate()
        name = sa.make_url(url).database
        execute(url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store.close()
        with pytest.raises(StoreUnavailable, match="target_session_attrs"):
            store.check()
        with pytest.raises(StoreUnavailable, match="target_session_attrs"):
            store.keys.create("one")
        store.close()


@pytest.mark.postgresql
def test_a_standby() -> None:
    """A standby may be behind, so not even settings are taken from it."""
    with PostgreSQL() as server, server.database() as url:
        store = Store(url)
        store.migrate()
        store.expect(store.identity())
        store.close()
        with server.standby():
            for use in (store.check, store.keys.list, lambda: store.keys.changes_since(0, "")):
                with pytest.raises(StoreUnavailable, match="target_session_attrs"):
                    use()
            store.close()
        store.check()
        assert store.keys.changes_since(0, "").everything
        store.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with keys and decisions, all of it in its file."""
    folder = tmp_path_factory.mktemp("filled")
    with closing(Store(f"sqlite:///{folder}/policyd.db")) as store:
        store.migrate()
        for number in range(50):
            store.keys.create(f"key {number}")
        store.log.append([record() for _ in range(5000)])
        store.check()
    return (folder / "policyd.db").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "zeros", "noise", "text"])
def test_a_damaged_file(filled: bytes, tmp_path: Path, damage: str) -> None:
    """The start finds the damage, wherever it is, and the message names what to do."""
    chance = random.Random(damage)
    for number in range(10):
        page = chance.randrange(1, len(filled) // 4096) * 4096
        put = {"zeros": bytes(4096), "noise": chance.randbytes(4096)}
        broken = {"cut": filled[:page], "text": b"not a database " * 999}.get(damage) or (
            filled[:page] + put[damage] + filled[page + 4096 :]
        )
        file = tmp_path / f"{number}.db"
        file.write_bytes(broken)
        reason = r"is damaged: .+policyd db restore"
        with (
            closing(Store(f"sqlite:///{file}")) as store,
            pytest.raises(StoreUnavailable, match=reason),
        ):
            store.check()
        assert file.read_bytes() == broken


def test_a_large_log(
    filled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The start checks a large log no longer than allowed, and reads all settings all the same."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(damage, "_PATIENCE", 0)
    monkeypatch.setattr(damage, "_STEPS", 10)
    (tmp_path / "policyd.db").write_bytes(filled)
    store = Store(f"sqlite:///{tmp_path}/policyd.db")
    store.check()
    assert "too large to look through" in caplog.text
    store.keys.create("after that, all is as before")
    root = "SELECT rootpage FROM sqlite_master WHERE name = 'api_keys'"
    with closing(sqlite3.connect(tmp_path / "policyd.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = connection.execute(root).fetchone()[0]
    store.close()
    with (tmp_path / "policyd.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    with (
        closing(Store(f"sqlite:///{tmp_path}/policyd.db")) as store,
        pytest.raises(StoreUnavailable, match="is damaged"),
    ):
        store.check()


# Which program wrote to the file

WRITTEN, LATER = Written(1, 4096), Written(2, 4096)
BEGUN, DONE = Counts(b"salt", 3, 7), Counts(b"salt", 7, 7)


@pytest.mark.parametrize(
    ("known", "before", "written", "after", "is_explained"),
    [
        (DONE, DONE, WRITTEN, DONE, True),
        (DONE, DONE, LATER, DONE, False),
        (DONE, DONE, Written(1, 8192), DONE, False),
        # A checkpoint under way, one that began in the meantime, one that has ended.
        (BEGUN, BEGUN, LATER, BEGUN, True),
        (DONE, DONE, LATER, BEGUN, True),
        (BEGUN, DONE, LATER, DONE, True),
        (BEGUN, BEGUN, LATER, DONE, True),
        (DONE, Counts(b"new", 0, 0), LATER, Counts(b"new", 0, 0), True),
        # The counts cannot be read.
        (None, DONE, LATER, DONE, True),
        (DONE, None, LATER, DONE, True),
        (DONE, DONE, LATER, None, True),
    ],
)
def test_which_program_wrote(
    known: Counts | None,
    before: Counts | None,
    written: Written,
    after: Counts | None,
    is_explained: bool,
) -> None:
    """A checkpoint explains the writes that it can have made; the rest stays unexplained."""
    following = Checkpoints()
    following.begin(WRITTEN, known)
    assert following.explain(before, written, after) is is_explained
    if not is_explained:
        assert following.explain(before, written, after) is False


@pytest.mark.slow
def test_checkpoints_are_explained(tmp_path: Path) -> None:
    """However SQLite writes to the file, it is not taken for another program."""
    file = tmp_path / "policyd.db"
    store, other = (Store(f"sqlite:///{file}") for _ in range(2))
    store.migrate()
    written = set()
    for number in range(30):
        for one in (store, other):
            one.log.append([record() for _ in range(500)])
        written.add(file.stat().st_mtime_ns)
        with closing(sqlite3.connect(file)) as connection:
            kind = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")[number % 4]
            connection.execute(f"PRAGMA wal_checkpoint({kind})")
            if number % 10 == 5:
                connection.execute("VACUUM")
        assert store.keys.list() == other.keys.list() == []
    assert len(written) > 5
    shm = file.with_name("policyd.db-shm").stat()
    inode = (shm.st_dev, shm.st_ino)
    assert checkpoints.counts(checkpoints.find_descriptor(inode), inode) is not None
    other.close()
    # As a copy does, which writes the same bytes here.
    with file.open("r+b") as opened:
        opened.write(file.read_bytes()[:4096])
    with pytest.raises(StoreUnavailable, match="another program has written"):
        store.keys.list()
    with pytest.raises(StoreUnavailable, match="another program has written"):
        store.keys.create("one")
    store.close()
