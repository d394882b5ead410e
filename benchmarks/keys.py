"""Many API keys: how long policyd takes to start with them, what memory they take, and how long a
page of their list takes."""

import hashlib
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

from benchmarks.findings import Findings
from benchmarks.processes import POLICYD_IS_READY, create_key, policyd, started
from benchmarks.rounds import Plan, table
from policyd.store import KeyFilter, Store

_SIZES = (1_000, 100_000, 1_000_000)
_PAGE = 100
_PAGES = 7
"""How often each page is read."""
Figures = dict[str, float]


async def run(folder: Path, plan: Plan) -> Findings:
    """Measure with as many keys as the plan has rows, at most. `folder` is for the databases."""
    found: dict[int, Figures] = {}
    for size in (size for size in _SIZES if size <= plan.rows):
        if found and time.monotonic() > plan.until:
            break
        found[size] = _measure(folder / f"{size}.db", size)
        sys.stderr.write(f"  {size:,} keys\n")
    findings = Findings()
    for size, figures in found.items():
        for name, value in figures.items():
            what, _, unit = name.rpartition(", ")
            findings.add(f"keys: {size:,}, {what}", [value], unit)
    names = next(iter(found.values()))
    rows = [(name, *(f"{each[name]:.1f}" for each in found.values())) for name in names]
    columns = ("", *(f"{size:,} keys" for size in found))
    findings.tables.append(table("Keys at scale, SQLite", columns, rows))
    return findings


def _measure(database: Path, size: int) -> Figures:
    url = f"sqlite:///{database}"
    create_key(url)
    _fill(database, size)
    found = {}
    for name in ("the first start", "a later start"):  # The later one has a snapshot of the keys.
        began = time.monotonic()
        with started(*policyd(url), ready=POLICYD_IS_READY) as server:
            found[f"{name}, s"] = time.monotonic() - began
            found["memory of the process that decides, MB"] = _anonymous(server.pid)
    store = Store(url)
    try:
        middle = store.keys.get(_key_id(size // 2)).id
        found["a page of the list, ms"] = _milliseconds(lambda: store.keys.list(limit=_PAGE))
        found["a page in the middle, ms"] = _milliseconds(
            lambda: store.keys.list(after=middle, limit=_PAGE)
        )
        found["a page of the console, ms"] = _milliseconds(
            lambda: store.key_list.page(KeyFilter(), limit=_PAGE)
        )
    finally:
        store.close()
    return found


def _fill(database: Path, size: int) -> None:
    """Make the one key of the database `size` keys."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM api_keys").fetchone())
        names, marks = ", ".join(map(repr, row)), ", ".join("?" * len(row))
        statement = f"INSERT INTO api_keys ({names}) VALUES ({marks})"  # noqa: S608  # our own names
        connection.executemany(statement, _rows(row, size))


def _rows(row: dict[str, object], size: int) -> Iterator[tuple[object, ...]]:
    created = datetime.fromisoformat(str(row["created_at"]))
    for number in range(1, size):
        digest = hashlib.sha256(str(number).encode()).digest()
        at = str(created + timedelta(milliseconds=number))
        own = {"id": _key_id(number), "name": f"key {number}", "digest": digest, "created_at": at}
        yield tuple((row | own).values())


def _key_id(number: int) -> str:
    return f"key_{number:016x}"


def _milliseconds(ask: Callable[[], object]) -> float:
    taken = []
    for _ in range(_PAGES):
        began = time.perf_counter()
        ask()
        taken.append(1e3 * (time.perf_counter() - began))
    return median(taken)


def _anonymous(pid: int) -> float:
    """Megabytes of a process that no file backs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon:"))
