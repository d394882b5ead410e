"""What a million API keys cost: a start, memory, loading, a page of their list, and pauses.

A pause is CPU time of the whole process between two turns of its event loop, so that a busy machine
makes none: what the loop did in that turn, and what other threads did while they held the
interpreter.
"""

import asyncio
import gc
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.processes import POLICYD_IS_READY, ROOT, cpu_seconds, environment, policyd, started
from benchmarks.rounds import Plan
from policyd.keys.snapshot import SnapshotFile
from policyd.keys.snapshot_format import Head
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.store import KeyFilter, Store

_COUNTS = (1_000, 100_000, 1_000_000)
_QUICK = 10_000
"""Rows of a plan up to which only the smallest number of keys is measured."""
_BEGIN = datetime(2026, 1, 1)  # noqa: DTZ001  # as SQLite has it
_COLUMNS = "id,name,digest,mode,override,accept,policies,created_at,updated_at,revision,suffix"
_SEARCHED = "no such name"
_PAGES = 20


def measure(folder: Path, plan: Plan) -> dict[str, float]:
    """The figures by name, for each number of keys. `folder` is for the databases."""
    found: dict[str, float] = {}
    for count in _COUNTS[:1] if 0 < plan.rows <= _QUICK else _COUNTS:
        if found and time.monotonic() > plan.until:
            break
        place = folder / str(count)
        place.mkdir()
        url = f"sqlite:///{place}/policyd.db"
        _fill(url, count)
        figures = _start(url) | _inside(url)
        found |= {f"{count:,} keys: {name}": round(value, 2) for name, value in figures.items()}
    return found


def _fill(url: str, count: int) -> None:
    store = Store(url)
    store.migrate()
    store.close()
    file = sqlite3.connect(url.removeprefix("sqlite:///"))
    file.execute("PRAGMA synchronous = OFF")
    with file:
        marks = ",".join("?" * (_COLUMNS.count(",") + 1))
        file.executemany(f"INSERT INTO api_keys ({_COLUMNS}) VALUES ({marks})", _rows(count))  # noqa: S608  # our own names
        file.execute("UPDATE revision SET value = ?", (2 + count // 10,))
    file.close()


def _rows(count: int) -> Iterator[tuple[Any, ...]]:
    places = '["user", "safety_identifier"]'
    for number in range(count):
        at = f"{_BEGIN + timedelta(seconds=number):%Y-%m-%d %H:%M:%S}.000000"
        others = "{}" if number % 10 else f'{{"max_tokens":[3,"{number % 500}",null]}}'
        key_id, suffix = f"key_{secrets.token_hex(8)}", f"{number % 65536:04x}"
        yield (
            *(key_id, f"application {number}", os.urandom(32), 3 if number % 3 else None, 1),
            *(places, others, at, at, 1 + number // 10, suffix),
        )


def _start(url: str) -> dict[str, float]:
    """A start of the server from its database."""
    began = time.monotonic()
    with started(*policyd(url), ready=POLICYD_IS_READY) as server:
        took = time.monotonic() - began
        return {
            "start from the database, s": took,
            "the same, CPU s": cpu_seconds(server.pid),
            "memory of the worker, MB": _memory(server.pid),
        }


def _memory(pid: int | str) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _inside(url: str) -> dict[str, float]:
    """The figures that are measured within a new process."""
    command = [sys.executable, "-m", "benchmarks.keys", url]
    made = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment(), check=True)
    found: dict[str, float] = json.loads(made.stdout)
    return found


async def _measure(url: str) -> dict[str, float]:
    store = Store(url)
    table = StoredKeyTable(store.keys.changes_since)
    before, began = _memory("self"), time.process_time()
    await table.refresh()
    took = time.process_time() - began
    found = {
        "loading, CPU µs a key": 1e6 * took / len(table),
        "memory of the table, MB": _memory("self") - before,
    }
    found |= await _snapshot(table, Path(url.removeprefix("sqlite:///")).with_name("snapshot"))
    gc.freeze()  # As a worker does.
    table._read_to = (1, "another")
    found["longest pause, all read anew, ms"] = await _longest_pause(table.refresh)
    table._read_to = (table.revision * 9 // 10, "")
    found["longest pause, a tenth changed at once, ms"] = await _longest_pause(table.refresh)
    found |= _pages(store)
    store.close()
    return found


async def _snapshot(table: StoredKeyTable, path: Path) -> dict[str, float]:
    file = SnapshotFile(path)
    head = Head(identity="x", place="x", revision=table.revision, followed_at=time.time())
    settings, defaults = table.copy(), table.defaults

    async def keep() -> None:
        await asyncio.to_thread(file.keep, head, settings, defaults)

    pause = await _longest_pause(keep)
    began = time.process_time()
    file.read("x", "x", 3600.0)
    took = time.process_time() - began
    return {"longest pause, writing the snapshot, ms": pause, "reading the snapshot, CPU s": took}


async def _longest_pause(work: Callable[[], Awaitable[None]]) -> float:
    longest, is_done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        last = time.process_time()
        while not is_done:
            await asyncio.sleep(0)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    watching = asyncio.create_task(watch())
    await work()
    is_done = True
    await watching
    return 1e3 * longest


def _pages(store: Store) -> dict[str, float]:
    page = store.key_list.page
    keys = page(KeyFilter(), limit=1000, descending=True)
    deep = keys[len(keys) // 2].id
    asked: dict[str, Callable[[], object]] = {
        "first page of the list, CPU ms": lambda: page(KeyFilter()),
        "deep page, CPU ms": lambda: page(KeyFilter(), after=deep),
        "page before, by name, CPU ms": lambda: page(KeyFilter(), sort="name", before=deep),
        "page of policyd keys list, CPU ms": lambda: store.keys.list(after=deep),
        "by ID, CPU ms": lambda: page(KeyFilter(deep)),
        "by a part of a name that none has, CPU ms": lambda: page(KeyFilter(_SEARCHED)),
    }
    return {name: 1e3 * _median(ask) for name, ask in asked.items()}


def _median(ask: Callable[[], object]) -> float:
    taken = []
    for _ in range(_PAGES):
        began = time.process_time()
        ask()
        taken.append(time.process_time() - began)
    return sorted(taken)[_PAGES // 2]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_measure(sys.argv[1]))))
