"""The database is deleted, replaced or put back under a running policyd: policyd notices, and what
it answers stays in a database that exists.

Every program and file is real. `pytest --log-level=info -rP` shows the counts.
"""

import asyncio
import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest

from policyd.decision_log.record import Record, Verdict
from policyd.store import LogFilter, Store
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest, EvaluateResponse
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.load import DECIDED, MODE, Load, MakeStack, Stack, check, keys
from tests.support.postgresql import PostgreSQL
from tests.support.waiting import until

log = logging.getLogger(__name__)

BESIDE = ("-wal", "-shm")
NAMES = ("policyd.db", "old.db")


@asynccontextmanager
async def loaded(stack: Stack, *others: int) -> AsyncIterator[Load]:
    """Apply load from before a fault until decisions flow again.

    Each request is answered as before, or with one of the `others`.
    """
    load = Load(stack)
    async with load.running():
        await load.more(40, *DECIDED)
        yield load
        await load.more(40, *DECIDED)
    assert len(load.answers) == load.sent
    assert DECIDED <= set(load.statuses()) <= DECIDED.union(others)
    for answer in load.answers:
        check(answer)


def back_up(file: Path, to: Path) -> Path:
    """Make a whole copy of a database that is in use."""
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    return to


def logged(file: Path) -> list[Record]:
    """The decisions of the load in the database."""
    store = Store(f"sqlite:///{file}")
    try:
        found: list[Record] = []
        while page := store.log.page(LogFilter(), after=found[-1].id if found else "", limit=5000):
            found += page
        return [one for one in found if one.trace_id.startswith("load-")]
    finally:
        store.close()


def flagged(records: list[Record]) -> set[str]:
    return {one.trace_id for one in records if one.verdict is Verdict.DENIED}


def mentions(stack: Stack, words: str) -> Callable[[], bool]:
    return lambda: any(words in line for line in stack.policyd.errors)


def ask(stack: Stack, key: str) -> EvaluateResponse:
    with grpc.insecure_channel(stack.policyd.grpc) as channel:
        request = EvaluateRequest(key=key, has_user=False)
        return PolicyServiceStub(channel).Evaluate(request, timeout=30)


async def in_force(stack: Stack, key: str, mode: int) -> None:
    """Wait until this mode is in force for the key."""
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(ask, stack, key)).explanation.mode != mode:
            await asyncio.sleep(0.05)


class Fault:
    """Does something to a database file; `old` then has what the file had until then."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.backup = back_up(file, file.with_name("backup.db"))
        self.old = file.with_name("old.db")
        # The same file under another name: what is committed to it can be counted.
        os.link(file, self.old)

    def renamed_over(self) -> None:
        self.backup.rename(self.file)

    def renamed_over_and_the_rest_deleted(self) -> None:
        for ending in BESIDE:
            # The test needs the changes in there back, to count them.
            os.link(f"{self.file}{ending}", f"{self.old}{ending}")
            os.unlink(f"{self.file}{ending}")
        self.backup.rename(self.file)

    def deleted_and_put_back_later(self) -> None:
        self.file.unlink()
        self._is_away()
        self.backup.rename(self.file)

    def moved_away_and_back(self) -> None:
        away = self.file.with_name("away.db")
        self.file.rename(away)
        self._is_away()
        away.rename(self.file)

    def the_rest_deleted(self) -> None:
        for ending in BESIDE:
            os.link(f"{self.file}{ending}", f"{self.old}{ending}")
            os.unlink(f"{self.file}{ending}")

    def _is_away(self) -> None:
        for _ in range(20):
            asyncio.run(asyncio.sleep(0.05))
            assert not self.file.exists(), "an empty database was made in its place"

    def old_records(self) -> list[Record]:
        """The records of the old file and of the files beside it."""
        for aside in self.file.parent.glob("policyd.db-*.of-*"):
            shutil.copy(aside, self.old.with_name(aside.name.partition(".of-")[0].replace(*NAMES)))
        return logged(self.old)


FAULTS = [
    Fault.renamed_over,
    Fault.renamed_over_and_the_rest_deleted,
    Fault.deleted_and_put_back_later,
    Fault.moved_away_and_back,
    Fault.the_rest_deleted,
]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("fault", FAULTS, ids=[one.__name__ for one in FAULTS])
async def test_a_file_that_is_replaced(
    make_stack: MakeStack, fault: Callable[[Fault], None], workers: str
) -> None:
    """Every flag is in the old database or in the new one, and in the new one if its request came
    after the change; the new settings are followed.
    """
    stack = make_stack("--workers", workers)
    file = stack.policyd.folder / "policyd.db"
    async with loaded(stack) as load:
        prepared = await asyncio.to_thread(Fault, file)
        await load.more(100, *DECIDED)
        await asyncio.to_thread(fault, prepared)
        sent = load.sent
        await until(mentions(stack, "policyd opens it anew"))
        await load.more(100, *DECIDED)
        made = await asyncio.to_thread(keys, f"sqlite:///{file}", "create", "late", *MODE, "audit")
        await in_force(stack, made["key"], 2)
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    assert [name for name in os.listdir(f"{file}-spool") if name.endswith(".jsonl")] == []
    blocked = {one.trace_id for one in load.answers if one.status == 422}
    late = {one for one in blocked if int(one.removeprefix("load-")) > sent}
    new = logged(file)
    old = prepared.old_records()
    log.info(
        "%s: %d requests, %d flags answered, %d in the new file, %d in the old one, %d in neither",
        *(fault.__name__, load.sent, len(blocked), len(flagged(new)), len(flagged(old))),
        len(blocked - flagged(new) - flagged(old)),
    )
    assert blocked <= flagged(new) | flagged(old)
    assert late
    assert late <= flagged(new)
    assert len({one.id for one in new}) == len(new)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_another_installations_file(make_stack: MakeStack) -> None:
    """policyd takes no settings from another installation's file and ships nothing to it, until the
    right file is back."""
    stack = make_stack()
    file = stack.policyd.folder / "policyd.db"
    other = Store(f"sqlite:///{stack.policyd.folder}/other.db")
    other.migrate()
    _, foreign = other.keys.create("foreign")
    other.close()
    right, url = file.with_name("right.db"), stack.policyd.database_url
    async with loaded(stack) as load:
        await load.more(100, *DECIDED)
        # Younger than the pages that SQLite has taken over from -wal.
        made = await asyncio.to_thread(keys, url, "create", "late", *MODE, "off")
        await in_force(stack, made["key"], 1)
        file.rename(right)
        file.with_name("other.db").rename(file)
        await until(mentions(stack, "is not the one that this policyd started with"))
        await load.more(50, *DECIDED)
        assert (await asyncio.to_thread(ask, stack, foreign)).denial.http_status == 403
        file.rename(file.with_name("other.db"))
        right.rename(file)
        await until(mentions(stack, "the database answers again"))
        await until(mentions(stack, "takes the log's decisions again"))
        await asyncio.to_thread(keys, url, "set", made["id"], *MODE, "audit")
        await in_force(stack, made["key"], 2)
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    blocked = {one.trace_id for one in load.answers if one.status == 422}
    assert logged(file.with_name("other.db")) == []
    # The files beside it were put aside, and are back with it: no change is missing.
    assert blocked <= flagged(logged(file))


def put_back(backup: Path, file: Path) -> None:
    """Put the file back, as an operator does while no process has it open."""
    for ending in BESIDE:
        Path(f"{file}{ending}").unlink(missing_ok=True)
    backup.rename(file)


async def test_a_backup_copied_into_the_file(make_stack: MakeStack) -> None:
    """SQLite's own changes beside the file no longer fit it. policyd notices, stops using it, and
    logs what to do; after that, every flag of a later request is in the database.
    """
    stack = make_stack()
    file = stack.policyd.folder / "policyd.db"
    async with loaded(stack, 503) as load:
        backup = await asyncio.to_thread(back_up, file, file.with_name("backup.db"))
        await load.more(100, *DECIDED)
        shutil.copyfile(backup, file)
        sent = load.sent
        await until(mentions(stack, "settings stay at revision"))
        await until(mentions(stack, "another program has written to"))
        await load.more(100, *DECIDED)
        # The database does not have them: they wait for the next start, as the status tells.
        assert await asyncio.to_thread(stack.policyd.stop) == 3
        put_back(backup, file)
        await asyncio.to_thread(stack.restart_policyd)
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    late = {
        one.trace_id
        for one in load.answers
        if one.status == 422 and int(one.trace_id.removeprefix("load-")) > sent
    }
    assert late
    assert late <= flagged(logged(file))


def restore_within(backup: Path, file: Path) -> None:
    """Put a backup back through SQLite itself, which keeps the file and changes its content."""
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(file)) as target:
        source.backup(target)


async def test_a_backup_that_ends_at_the_same_revision(make_stack: MakeStack) -> None:
    """The number alone would not tell that the settings differ."""
    stack = make_stack()
    url = stack.policyd.database_url
    file = stack.policyd.folder / "policyd.db"
    made = keys(url, "create", "one", *MODE, "enforce")
    first = back_up(file, file.with_name("first.db"))
    keys(url, "set", made["id"], *MODE, "off")
    off = back_up(file, file.with_name("off.db"))
    restore_within(first, file)
    keys(url, "set", made["id"], *MODE, "audit")
    await in_force(stack, made["key"], 2)
    revision = (await asyncio.to_thread(ask, stack, made["key"])).revision
    restore_within(off, file)
    await in_force(stack, made["key"], 1)
    answer = await asyncio.to_thread(ask, stack, made["key"])
    assert (answer.decision, answer.revision) == (DECISION_ALLOW, revision)
    await until(mentions(stack, "put back from a backup, or has lost changes"))
    assert await asyncio.to_thread(stack.policyd.stop) == 0


@pytest.fixture
def own_postgresql() -> Iterator[tuple[PostgreSQL, str]]:
    with PostgreSQL() as server, server.database() as url:
        yield server, url


async def test_a_failover_that_lost_changes(
    make_stack: MakeStack, own_postgresql: tuple[PostgreSQL, str]
) -> None:
    """PostgreSQL goes on without its last commits, to the same revision: its settings are in force,
    and records that were shipped and lost with it are not reported as missing.
    """
    server, url = own_postgresql
    stack = make_stack(database_url=url)
    made = keys(url, "create", "one", *MODE, "enforce")
    async with loaded(stack) as load:
        await in_force(stack, made["key"], 3)
        await asyncio.to_thread(server.keep)
        await asyncio.to_thread(keys, url, "set", made["id"], *MODE, "off")
        await in_force(stack, made["key"], 1)
        revision = (await asyncio.to_thread(ask, stack, made["key"])).revision
        await asyncio.to_thread(server.stop)
        await load.more(40, *DECIDED)
        sent = load.sent
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.go_back)
        await asyncio.to_thread(keys, url, "set", made["id"], *MODE, "audit")
        await in_force(stack, made["key"], 2)
        answer = await asyncio.to_thread(ask, stack, made["key"])
        assert answer.revision == revision
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    with closing(Store(url)) as store:
        late = {
            f"load-{number}"
            for number in range(sent + 1, load.sent + 1)
            if any(one.trace_id == f"load-{number}" and one.status == 422 for one in load.answers)
        }
        found = flagged(store.log.page(LogFilter(), limit=100_000))
    assert late
    assert late <= found
