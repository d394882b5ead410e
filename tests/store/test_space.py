"""Space that retention frees is returned to the disk, in steps that hold up no other writer."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from policyd.store import Store, space
from tests.support.records import START, record


@pytest.mark.slow
@pytest.mark.parametrize("is_old", [False, True])
def test_a_file_shrinks(tmp_path: Path, is_old: bool) -> None:
    """A new file shrinks, and one of an older policyd does from its first VACUUM on."""
    file = tmp_path / "policyd.db"
    if is_old:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    store = Store(f"sqlite:///{file}")
    store.migrate()
    for _ in range(1 if is_old else 4):
        store.log.append([record(summary="x" * 450) for _ in range(2000)])
    before = _pages(file)
    while store.log.expire(START + timedelta(days=1), 10**6):
        pass
    if is_old:
        assert store.log.give_back() == 0
        store.close()
        store = Store(f"sqlite:///{file}")
        with store.log._engine.connect() as connection:
            connection.execution_options(policyd_begin="SELECT 1").exec_driver_sql("VACUUM")
        assert _auto_vacuum(file) == 2
        store.close()
        return
    steps = []
    while some := store.log.give_back():
        steps.append(some)
    assert max(steps) == steps[0] <= space.STEP
    assert len(steps) < 10
    assert before / 4 < _pages(file) < before * 0.7
    store.log.append([record()])
    assert store.log.status().decisions == 1
    store.close()


def _pages(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("PRAGMA page_count").fetchone()[0])


def _auto_vacuum(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        return int(connection.execute("PRAGMA auto_vacuum").fetchone()[0])


def test_opening_waits_for_no_writer(tmp_path: Path) -> None:
    """Opening a file that returns its space writes nothing."""
    file = tmp_path / "policyd.db"
    store = Store(f"sqlite:///{file}")
    store.migrate()
    store.close()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        other = Store(f"sqlite:///{file}", timeout=1)
        assert other.keys.list() == []
        other.close()
