"""Whatever breaks, the decision log has every answer that a client got, once.

Every program and database is real. `pytest --log-level=info -rP` shows the counts. By default the
faults are few and short; POLICYD_TEST_KILLS and POLICYD_TEST_AWAY (seconds) make them as many and
as long as in CI.
"""

import asyncio
import logging
import os
import random
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from policyd.decision_log.record import Record, Verdict
from policyd.store import LogFilter, Store
from tests.support.load import DECIDED, Answer, Load, MakeStack, Stack, check
from tests.support.postgresql import PostgreSQL
from tests.support.requirements import missing
from tests.support.waiting import until

log = logging.getLogger(__name__)

KILLS = int(os.environ.get("POLICYD_TEST_KILLS", "8"))
AWAY = float(os.environ.get("POLICYD_TEST_AWAY", "5"))
SMALL = 2**18
"""Bytes of a spool that is full soon."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, PostgreSQL | None]]:
    """The URL of a new database of each kind, and the PostgreSQL that has it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/policyd.db", None
        return
    # A PostgreSQL of its own, as the test stops it.
    with PostgreSQL() as server, server.database() as url:
        yield url, server


@asynccontextmanager
async def loaded(stack: Stack) -> AsyncIterator[Load]:
    """Apply load from before a fault until decisions flow again, and check each answer."""
    load = Load(stack)
    async with load.running():
        await load.more(40, *DECIDED)
        yield load
        await load.more(40, *DECIDED)
    assert len(load.answers) == load.sent
    for answer in load.answers:
        check(answer)


def logged(stack: Stack) -> list[Record]:
    """All decisions in the store that belong to requests of the load."""
    store = Store(stack.policyd.database_url)
    try:
        found: list[Record] = []
        while page := store.log.page(LogFilter(), after=found[-1].id if found else "", limit=5000):
            found += page
        assert store.log.status().decisions == len(found)
        return [one for one in found if one.trace_id.startswith("load-")]
    finally:
        store.close()


def lost(stack: Stack) -> int:
    store = Store(stack.policyd.database_url)
    try:
        return store.log.status().lost
    finally:
        store.close()


async def until_logged(stack: Stack, decisions: int) -> None:
    """Wait until so many decisions are in the store.

    What policyd cannot ship before it ends, it leaves in the spool.
    """
    with closing(Store(stack.policyd.database_url)) as store:
        async with asyncio.timeout(120):
            while store.log.status().decisions < decisions:
                await asyncio.sleep(0.2)


def traces(records: list[Record], verdict: Verdict) -> Counter[str]:
    return Counter(one.trace_id for one in records if one.verdict is verdict)


def answered(answers: list[Answer], status: int) -> set[str]:
    return {one.trace_id for one in answers if one.status == status}


@pytest.mark.timeout(120 + 20 * KILLS)
async def test_killed_again_and_again(make_stack: MakeStack) -> None:
    """policyd and its background worker are killed at any moment: every 422 and 200 that a client
    got is in the log, and no decision is there twice.
    """
    stack = make_stack()
    random.seed(1)
    async with loaded(stack) as load:
        for _ in range(KILLS):
            if random.random() < 0.3:  # keeps no secret
                kill_background_worker(stack)
            await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
            await asyncio.to_thread(stack.restart_policyd)
            await load.more(20, *DECIDED)
            await asyncio.sleep(random.random() * 0.2)  # keeps no secret
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    records = logged(stack)
    blocked, flagged = answered(load.answers, 422), traces(records, Verdict.DENIED)
    passed, allowed = answered(load.answers, 200), traces(records, Verdict.ALLOWED)
    unheard = len(records) - len(blocked) - len(passed)
    log.info(
        "%d kills, %d requests: %d got 422, of %d flagged; %d got 200, of %d allowed; "
        "%d decisions were logged and their answer lost with the process",
        *(KILLS, load.sent, len(blocked), flagged.total(), len(passed), allowed.total(), unheard),
    )
    assert blocked <= flagged.keys()
    assert passed <= allowed.keys()
    assert len({one.id for one in records}) == len(records)
    # Decisions that were logged and not received were under way at a kill.
    assert 0 <= unheard <= (KILLS + 1) * 8
    assert list(spool_of(stack).glob("*.jsonl")) == []


def spool_of(stack: Stack) -> Path:
    return stack.policyd.folder / "policyd.db-spool"


def kill_background_worker(stack: Stack) -> None:
    children = Path(f"/proc/{stack.policyd.pid}/task/{stack.policyd.pid}/children")
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGKILL)


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Lock the SQLite database, so that no other process can use it."""
    holder = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    yield
    holder.execute("ROLLBACK")
    holder.close()


@contextmanager
def stopped(server: PostgreSQL) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@pytest.mark.timeout(240 + 2 * AWAY)
async def test_the_store_is_away(
    make_stack: MakeStack, database: tuple[str, PostgreSQL | None]
) -> None:
    """Decisions go on as before, and the log has them all when the store is back."""
    url, server = database
    stack = make_stack(database_url=url)
    async with loaded(stack) as load:
        away = stopped(server) if server else locked(url)
        with away:
            await asyncio.sleep(AWAY)
            await load.more(100, *DECIDED)
    assert set(load.statuses()) == DECIDED
    await until_logged(stack, load.statuses().total())
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    records = logged(stack)
    log.info("%.0f s away: %s, %d logged", AWAY, dict(load.statuses()), len(records))
    assert traces(records, Verdict.DENIED) == Counter(answered(load.answers, 422))
    assert traces(records, Verdict.ALLOWED) == Counter(answered(load.answers, 200))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk that is soon full."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        missing("only root can make a disk that is full soon")
    yield folder
    # The processes of a killed policyd end a moment after it.
    subprocess.run(("umount", "--lazy", str(folder)), check=True)


@pytest.fixture(params=["limit", "disk"])
def full_soon(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Flags with which the spool is soon full, by its own limit or because its disk is."""
    if request.param == "limit":
        return ("--spool-limit", str(SMALL))
    return ("--spool", str(request.getfixturevalue("small_disk") / "spool"))


async def test_full_and_deny(make_stack: MakeStack, full_soon: tuple[str, ...]) -> None:
    """With --log-full deny no request is forwarded while the spool is full.

    With room again, policyd works as before.
    """
    stack = make_stack(*full_soon, "--log-full", "deny")
    async with loaded(stack) as load:
        with locked(stack.policyd.database_url):
            await load.more(50, 503)
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    records = logged(stack)
    log.info("%s, %d logged", dict(load.statuses()), len(records))
    assert traces(records, Verdict.DENIED) == Counter(answered(load.answers, 422))
    assert traces(records, Verdict.ALLOWED) == Counter(answered(load.answers, 200))
    assert lost(stack) == 0
    assert any("decisions are refused" in line for line in stack.policyd.errors)


async def test_full_and_drop(make_stack: MakeStack, full_soon: tuple[str, ...]) -> None:
    """With --log-full drop requests are answered while the spool is full, and losses counted."""
    stack = make_stack(*full_soon, "--log-full", "drop")
    async with loaded(stack) as load:
        with locked(stack.policyd.database_url):
            await until(lambda: any("dropped and counted" in e for e in stack.policyd.errors))
            await load.more(50, *DECIDED)
    assert set(load.statuses()) == DECIDED
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    records = logged(stack)
    log.info("%s, %d logged, %d lost", dict(load.statuses()), len(records), lost(stack))
    assert lost(stack) >= 50
    assert len(records) + lost(stack) == load.sent


async def test_a_spool_of_another_database(make_stack: MakeStack, tmp_path: Path) -> None:
    """policyd does not start on a spool whose entries belong to another database."""
    stack = make_stack()
    async with loaded(stack):
        with locked(stack.policyd.database_url):
            kill_background_worker(stack)
            await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        with pytest.raises(AssertionError, match="entries of another database"):
            await asyncio.to_thread(
                stack.restart_policyd, "--database-url", f"sqlite:///{tmp_path}/other.db"
            )
        await asyncio.to_thread(stack.restart_policyd)
