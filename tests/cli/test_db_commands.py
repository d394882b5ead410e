"""`policyd db`: backups, restores and copies lose nothing and duplicate nothing.

POLICYD_TEST_KILLS sets how often a copy is killed; by default, a few times.
"""

import json
import os
import random
import secrets
import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount, RefusedKeyReason
from policyd.errors import StoreUnavailable
from policyd.store import LogFilter, Store, metadata
from policyd.store.database import reading
from policyd.store.engine import open_engine
from tests.support.commands import invoke
from tests.support.postgresql import PostgreSQL
from tests.support.processes import BIN, Policyd, environment, run
from tests.support.records import decision_id, denied, outcome, record

KILLS = min(int(os.environ.get("POLICYD_TEST_KILLS", "3")), 10)
NOW = datetime.now(UTC)
ROWS = 3000 + 1000 * KILLS
"""A copy takes 1,000 at a time, and gets that much further before each kill."""
UNFILLED = "policyd db copy has not filled it"


def ask(url: str, *words: str) -> Any:
    done = invoke("policyd", "db", *words, "--json", "--database-url", url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def error(url: str, *words: str) -> str:
    done = invoke("policyd", "db", *words, "--database-url", url)
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


def fill(store: Store, rows: int = ROWS) -> None:
    """Put a row into every table that a server writes to."""
    for start in range(0, rows, 1000):
        some = [record(NOW - (start + n) * timedelta(minutes=1)) for n in range(1000)]
        store.log.append([*some, denied(NOW, end_user="a\u3000b"), outcome(some[0])])
    store.log.append([outcome(record(NOW))])  # The outcome waits for its decision.
    store.log.append([RefusedKey(decision_id(NOW), RefusedKeyReason.UNKNOWN, "1.2.3.4")])
    minute = int(NOW.timestamp()) // 60
    store.log.append([RefusedKeyCount("p", n, minute, "1.2.3.4", 1, 0, 0) for n in range(30)])
    store.log.lose({"p": 3})
    for n in range(30):
        store.keys.create(f"app {n} {secrets.token_hex(4)}")
    store.administrator.set_password("digest", store.administrator.get().epoch)
    store.administrator.end_session("s", timedelta(days=1))


def empty(store: Store) -> None:
    """Delete all decisions, which takes several steps."""
    while store.log.expire(NOW + timedelta(days=1), 10**6):
        pass


def in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def contents(url: str) -> dict[str, list[Any]]:
    """All rows of all tables, but those that every copy makes anew."""
    engine = open_engine(url)
    with reading(engine) as connection:
        found = {
            table.name: sorted(
                repr([*map(in_utc, row)]) for row in connection.execute(table.select())
            )
            for table in metadata.sorted_tables
            if table.name not in ("revision", "revision_epochs")
        }
    engine.dispose()
    return found


def test_status(new_database: str) -> None:
    """The status tells the database's form, its contents and which servers use it."""
    store = Store(new_database)
    if not new_database.startswith("sqlite"):
        done = invoke("policyd", "db", "status", "--json", "--database-url", new_database)
        assert (done.returncode, json.loads(done.stdout)["form"]) == (1, None)
    store.migrate()
    store.log.append([one := record(NOW), record(NOW - timedelta(days=3))])
    store.workers.beat("w", "host-7", 3)
    status = ask(new_database, "status")
    assert (status["decisions"], status["hosts"]) == (2, ["host-7"])
    assert status["identity"] == store.identity()
    assert datetime.fromisoformat(status["newest"]) == one.time
    assert status["size"] > 0
    store.close()


@contextmanager
def loaded(url: str, pause: float = 0.0) -> Iterator[list[float]]:
    """Create keys and log decisions all the time, with `pause` seconds between.

    Yields how long each took.
    """
    done = threading.Event()
    took: list[float] = []

    def write() -> None:
        with closing(Store(url)) as store:
            while not done.is_set():
                began = time.monotonic()
                store.keys.create(f"load {len(took)} {secrets.token_hex(4)}")
                store.log.append([record(datetime.now(UTC)) for _ in range(20)])
                took.append(time.monotonic() - began)
                time.sleep(pause)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
def test_a_backup_under_load(store: Store, url: str, tmp_path: Path) -> None:
    """A backup is one moment of the database, whole, in one file that only its owner can read.

    Writers go on.
    """
    fill(store)
    output = tmp_path / "backup\u3000"
    with loaded(url) as took:
        before = len(took)
        began = time.monotonic()
        done = run("policyd", "db", "backup", "--output", str(output), "--database-url", url)
        elapsed = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        assert len(took) > before + 3
    assert max(took) < elapsed
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert list(tmp_path.glob(f"{output.name}-*")) == []
    copy = Store(f"sqlite:///{output}")
    found = copy.log.page(LogFilter(), limit=10**6)
    assert copy.log.status().decisions == len(found) > ROWS
    assert copy.keys.changes_since(0).revision == 31 + len(copy.keys.list(limit=10**6)) - 30
    copy.close()
    held = output.read_bytes()
    assert "already" in error(url, "backup", "--output", str(output))
    assert output.read_bytes() == held
    assert "no folder" in error(url, "backup", "--output", f"{tmp_path}/no/such")
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_copy_of_a_file_in_use(store: Store, url: str, tmp_path: Path) -> None:
    """`policyd db restore` does not take a plain copy of a file in use for a backup."""
    fill(store, 1000)
    (tmp_path / "copy").write_bytes((tmp_path / "policyd.db").read_bytes())
    store.close()
    message = error(url, "restore", "--input", f"{tmp_path}/copy")
    assert "policyd db backup" in message


def test_a_restore(store: Store, url: str, tmp_path: Path, start: Callable[..., Any]) -> None:
    """A restore is rejected while a server has the database open, whatever its spool.

    It keeps what was there, and a revision of the past is not taken for the one that servers know.
    """
    fill(store, 1000)
    revision = store.keys.changes_since(0).revision
    ask(url, "backup", "--output", f"{tmp_path}/backup")
    store.keys.create("later")
    store.close()
    server = start(Policyd, tmp_path, "--spool", f"{tmp_path}/elsewhere")
    assert "is in use: stop policyd serve" in error(url, "restore", "--input", f"{tmp_path}/backup")
    assert server.stop() == 0
    told = ask(url, "restore", "--input", f"{tmp_path}/backup")
    restored, before = Store(url), Store(f"sqlite:///{told['before']}")
    assert (len(restored.keys.list()), len(before.keys.list())) == (30, 31)
    assert restored.keys.changes_since(0).revision == revision + 1
    assert restored.log.status().decisions == 1001
    restored.close()
    before.close()
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["none", "text", "torn", "foreign", "newer"])
def test_a_backup_that_is_none(store: Store, url: str, tmp_path: Path, damage: str) -> None:
    """A file that is no backup is rejected, and the database stays as it is."""
    fill(store, 100)
    backup = tmp_path / "backup"
    if damage != "none":
        ask(url, "backup", "--output", str(backup))
    store.close()
    if damage == "text":
        backup.write_text("not a database " * 100)
    elif damage == "torn":
        held = bytearray(backup.read_bytes())
        held[8192:16384] = random.Random(1).randbytes(8192)
        backup.write_bytes(held)
    elif damage in ("foreign", "newer"):
        with closing(sqlite3.connect(backup)) as connection, connection:
            if damage == "foreign":
                connection.execute("DROP TABLE schema_version")
                connection.execute("DROP TABLE alembic_version")
            else:
                connection.execute("UPDATE schema_version SET version_num = '9999'")
                connection.execute("UPDATE schema_form SET works_from = '9999'")
    before = contents(url)
    message = error(url, "restore", "--input", str(backup))
    assert "backup" in message
    assert contents(url) == before


def test_a_damaged_database_is_restored(store: Store, url: str, tmp_path: Path) -> None:
    """A backup takes the place of a file that is damaged, and of one that is gone."""
    fill(store, 1000)
    ask(url, "backup", "--output", f"{tmp_path}/backup")
    store.close()
    file = tmp_path / "policyd.db"
    file.write_bytes(b"damaged" * 1000)
    told = ask(url, "restore", "--input", f"{tmp_path}/backup")
    assert Path(told["before"]).read_bytes() == b"damaged" * 1000
    file.unlink()
    assert ask(url, "restore", "--input", f"{tmp_path}/backup")["before"] is None
    again = Store(url)
    assert len(again.keys.list()) == 30
    again.close()


@pytest.mark.slow
def test_vacuum(store: Store, url: str, tmp_path: Path) -> None:
    """Free space goes back to the disk, at first at once, and then bit by bit beside writers."""
    file = tmp_path / "policyd.db"
    fill(store)
    empty(store)
    size = file.stat().st_size
    store.close()
    if ask(url, "status")["mode"].endswith("auto_vacuum no"):
        assert "Give --yes" in error(url, "vacuum")
        assert file.stat().st_size == size
    ask(url, "vacuum", "--yes")
    assert file.stat().st_size < size / 2
    again = Store(url)
    fill(again)
    empty(again)
    again.close()
    assert ask(url, "status")["mode"].endswith("auto_vacuum incremental")
    # Writers that never pause would fill the space that is given back.
    with loaded(url, pause=0.1):
        told = ask(url, "vacuum")
    assert told["bytes"] < told["bytes_before"]


def test_postgresql_has_programs_of_its_own(tmp_path: Path) -> None:
    """On PostgreSQL, commands for SQLite's file name the program to use, without the password."""
    url = "postgresql+psycopg://policyd:hunter2@db.internal:5432/policyd"
    for words, program in (
        (("backup", "--output", "x"), "pg_dump"),
        (("restore", "--input", "x"), "pg_restore"),
        (("vacuum",), "psql"),
    ):
        message = error(url, *words)
        assert f"{program} " in message
        assert "postgresql://policyd@db.internal:5432/policyd" in message
        assert "hunter2" not in message


@pytest.mark.slow
def test_no_database(tmp_path: Path) -> None:
    """A command that needs a database makes none.

    `policyd db migrate` does, unless it only tells what it would do.
    """
    url = f"sqlite:///{tmp_path}/none.db"
    for words in (
        ("status",),
        ("backup", "--output", f"{tmp_path}/x"),
        ("vacuum",),
        ("copy", "--to", f"sqlite:///{tmp_path}/x"),
    ):
        assert "there is no database" in error(url, *words)
    assert list(tmp_path.iterdir()) == []
    assert ask(url, "migrate", "--dry-run")["pending"]
    assert list(tmp_path.iterdir()) == []
    made = ask(url, "migrate")
    assert (made["before"], made["form"]) == (None, ask(url, "status")["form"])


def test_a_copy_that_is_killed(store: Store, url: str, postgresql: PostgreSQL) -> None:
    """A copy that is killed resumes where it was, and no server takes it for whole before it is.

    In the end every row of every table is there once, and the copy can be copied back.
    """
    fill(store)
    identity = store.identity()
    store.close()
    with postgresql.database() as target:
        killed = 0
        while killed < KILLS:
            words = ("policyd", "db", "copy", "--database-url", url, "--to", target)
            with subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            ) as process:
                until_copying(target, killed)
                time.sleep(random.random() * 0.05)
                process.send_signal(signal.SIGKILL)
            if not is_copying(target):
                break  # The copy was complete before the kill.
            assert process.returncode == -signal.SIGKILL
            killed += 1
            new = Store(target)
            with closing(new), pytest.raises(StoreUnavailable, match=UNFILLED):
                new.check_form()
            with closing(new), pytest.raises(StoreUnavailable, match=UNFILLED):
                new.migrate()
        assert killed
        if is_copying(target):
            counts = ask(url, "copy", "--to", target)["rows"]
            # A database makes the epochs of its revisions itself.
            assert counts.keys() == metadata.tables.keys() - {"revision_epochs"}
            assert counts["decisions"] == ROWS + ROWS // 1000
        assert contents(target) == contents(url)
        new = Store(target)
        new.check_form()
        assert new.identity() == identity
        new.keys.create("later")
        new.close()
        assert "in use" in error(url, "copy", "--to", target)
        back = url.replace("policyd.db", "back.db")
        ask(target, "copy", "--to", back)
        assert contents(back) == contents(target)


def until_copying(url: str, killed: int) -> None:
    """Wait until more rows are copied than before each kill so far, or all are."""
    deadline = time.monotonic() + 60
    while copied(url) <= 1000 * killed:
        if killed and not is_copying(url):
            return
        assert time.monotonic() < deadline, "nothing is copied"
        time.sleep(0.01)


def is_copying(url: str) -> bool:
    """Whether a copy into the database has begun and is not complete."""
    with looking(url) as connection:
        return sa.inspect(connection).has_table("schema_copy")


def copied(url: str) -> int:
    """How many rows an incomplete copy has copied."""
    if not is_copying(url):
        return 0
    with looking(url) as connection:
        return connection.scalar(sa.text("SELECT sum(copied) FROM schema_copy")) or 0


@contextmanager
def looking(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_copies_that_are_refused(store: Store, url: str, tmp_path: Path) -> None:
    """A database in use is neither copied nor copied into."""
    fill(store, 1000)
    other = Store(f"sqlite:///{tmp_path}/other.db")
    other.migrate()
    other.keys.create("app")
    other.close()
    message = error(url, "copy", "--to", f"sqlite:///{tmp_path}/other.db")
    assert "the new database is in use" in message
    store.workers.beat("w", "host-7", 3)
    message = error(url, "copy", "--to", f"sqlite:///{tmp_path}/new.db")
    assert "policyd serve uses the database (on host-7)" in message
