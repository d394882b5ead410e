"""A database that neither answers nor closes: every call to it ends in time, and nothing of one
replica holds up another.
"""

import asyncio
import inspect
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from policyd.command.threads import StoreThreads
from policyd.errors import RevisionNotReached, StoreBusy, StoreUnavailable
from policyd.keys.settings import DeclaredKey
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.store import LogFilter, Store
from policyd.store.database import LONG, reading
from policyd.store.history import Kind
from policyd.store.key_list import KeyFilter
from tests.support.databases import open_store
from tests.support.postgresql import PostgreSQL
from tests.support.processes import environment
from tests.support.records import denied, outcome
from tests.support.silent import SilentProxy

SHORT = 2.0
"""Seconds that a call may take here."""
ENOUGH = 40.0
"""Seconds after which a call has no end: far more than any machine should take for SHORT."""
FIRST_STARTS = int(os.environ.get("POLICYD_TEST_FIRST_STARTS", "12"))
NOW = datetime.now(UTC)
KIND = Kind(True, "chat_completion", 0, 0, "", "", "", 0, "", "", "", "", "", None, None)
PERIOD = (NOW - timedelta(days=1), NOW)
DENIED = denied()
CALLS: dict[str, tuple[Any, ...]] = {
    "Keys.changes_since": (0,),
    "Store.check": (),
    "Store.check_form": (),
    "Keys.create": ("app",),
    "Store.form": (),
    "Keys.get": ("id",),
    "Store.identity": (),
    "Keys.list": (),
    "Store.migrate": (),
    "Keys.revoke": ("id",),
    "Store.time": (),
    "Keys.update": ("id", {"name": "other"}),
    "Log.agree": (timedelta(days=1), 10),
    "Log.append": ([DENIED, outcome(DENIED)],),
    "Log.expire": (NOW, 10),
    "Log.get": ("id",),
    "Log.lose": ({"process": 1},),
    "Log.lost_by": (["process"],),
    "Log.page": (LogFilter(),),
    "Log.retire": (timedelta(days=1), 10),
    "Log.standstill": (),
    "Log.status": (),
    "Log.usage": (["alice"],),
    "Positions.forget": ("spool", ["file"]),
    "Positions.keep": ("spool",),
    "Positions.read": ("spool",),
    "RefusedKeys.hours": PERIOD,
    "RefusedKeys.sample": ("id",),
    "RefusedKeys.samples": (NOW,),
    "RefusedKeys.sources": PERIOD,
    "RefusedKeys.total": (),
    "Statistics.hours": PERIOD,
    "Statistics.keys": PERIOD,
    "Statistics.placeholders": PERIOD,
    "Statistics.users": PERIOD,
    "Workers.beat": ("id", "host", 1),
    "Workers.leave": ("id",),
    "Workers.list": (),
    "Audit.add": ("sign_in", "console"),
    "Audit.list": (),
    "KeyBatches.revoke": ({"id": "etag"},),
    "KeyBatches.set_policies": ({"id": "etag"}, ()),
    "KeyList.chosen": (["id"],),
    "KeyList.last_used": (["id"],),
    "KeyList.page": (KeyFilter(),),
    "Keys.find": ("app",),
    "Keys.in_force": (b"digest",),
    "Keys.first_created": (),
    "Keys.known": (["id"],),
    "Keys.rotate": ("id", timedelta(days=1)),
    "Log.neighbours": (LogFilter(), "id"),
    "Log.remove_sample": (),
    "Log.search": (LogFilter(),),
    "Statistics.emails": PERIOD,
    "Statistics.first": (),
    "Statistics.latencies": (*PERIOD, timedelta(hours=1)),
    "Statistics.models": PERIOD,
    "Store.apply": ([DeclaredKey("app")],),
    "Store.defaults": (),
    "Store.why_unchangeable": (),
    "Administrator.end_session": ("id", NOW),
    "Administrator.end_sessions": (),
    "Administrator.get": (),
    "Administrator.has_ended": ("id",),
    "Administrator.set_password": ("hash", 1),
    "History.groups": (),
    "History.newest": ([KIND], 3),
}
"""The arguments of each public method."""
TELLS = {"Store.why_unchangeable"}
"""It says why the database cannot be used, and raises nothing."""
APART = {"Store.close", "Store.expect", "Store.history", "Log.give_back", "Store.hints"}
"""Methods that send PostgreSQL nothing, and the hints, which have a test of their own."""


@pytest.fixture(scope="module")
def database(postgresql: PostgreSQL) -> Iterator[str]:
    with postgresql.database() as url:
        open_store(url).close()
        yield url


@pytest.fixture
def proxy(postgresql: PostgreSQL) -> Iterator[SilentProxy]:
    with SilentProxy(postgresql.socket) as between:
        yield between


def by_way_of(proxy: SilentProxy, url: str) -> str:
    """The URL of the same database behind the proxy."""
    name = sa.make_url(url).database
    return f"postgresql+psycopg://postgres@{proxy.host}:{proxy.port}/{name}"


def parts(store: Store) -> dict[str, Any]:
    """The store and every object that its users call, by class name."""
    kept = [one for one in vars(store).values() if type(one).__module__.startswith("policyd.")]
    found = [store, *kept, store.history("key", *PERIOD)]
    return {type(one).__name__: one for one in found}


def public_methods(store: Store) -> set[str]:
    return {
        f"{name}.{method}"
        for name, part in parts(store).items()
        for method, _ in inspect.getmembers(part, inspect.ismethod)
        if not method.startswith("_")
    }


def test_every_method_is_tried(database: str) -> None:
    """A new method of the store must get its arguments in CALLS."""
    with closing(Store(database)) as store:
        assert public_methods(store) == CALLS.keys() | APART


def _finish(store: Store, name: str) -> None:
    """Call a method, and read what it gives piece by piece."""
    part, method = name.split(".")
    found = getattr(parts(store)[part], method)(*CALLS[name])
    list(found if isinstance(found, Iterator) else ())


@pytest.mark.parametrize("is_known", [True, False], ids=["old connection", "new connection"])
def test_every_method_ends(database: str, proxy: SilentProxy, is_known: bool) -> None:
    """Every method gives up in time on a database that acknowledges packets and never answers."""
    url = by_way_of(proxy, database)
    stores = {name: Store(url, SHORT) for name in CALLS}
    for store in stores.values() if is_known else ():
        store.identity()
    proxy.be_silent()

    def call(name: str) -> None:
        if name in TELLS:
            assert stores[name].why_unchangeable()
            return
        with pytest.raises(StoreUnavailable):
            _finish(stores[name], name)

    # All end while the database is silent.
    with ThreadPoolExecutor(len(CALLS)) as threads:
        list(threads.map(call, CALLS, timeout=ENOUGH))
    proxy.speak()
    for store in stores.values():
        # No connection that was given up is used again.
        assert store.identity()
        store.close()


def test_a_call_that_may_take_long(database: str, proxy: SilentProxy) -> None:
    """A long call goes on while the server lives, though it is silent, and ends with the server."""
    with closing(Store(by_way_of(proxy, database), SHORT)) as store:
        with reading(store._engine, LONG) as connection:
            connection.exec_driver_sql(f"SELECT pg_sleep({3 * SHORT})")
        with pytest.raises(StoreUnavailable), reading(store._engine) as connection:
            connection.exec_driver_sql(f"SELECT pg_sleep({10 * ENOUGH})")
        event.listen(store._engine, "before_cursor_execute", lambda *_: proxy.be_silent())
        with pytest.raises(StoreUnavailable), reading(store._engine, LONG) as connection:
            connection.exec_driver_sql(f"SELECT pg_sleep({10 * ENOUGH})")


def test_a_silent_answer(database: str, proxy: SilentProxy) -> None:
    """Only a connection that was lost on the way is given up: the next call has another one."""
    with closing(Store(by_way_of(proxy, database), SHORT)) as store:
        store.identity()
        proxy.lose()
        with suppress(StoreUnavailable):
            store.identity()
        assert store.identity()


def sessions(url: str, *names: str) -> dict[str, str]:
    """The settings of a store's sessions."""
    with closing(Store(url, 10)) as store, reading(store._engine) as connection:
        return {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names}


def test_what_the_server_is_told(database: str) -> None:
    """The server gives up what a vanished client holds, unless the URL sets otherwise."""
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    assert sessions(database, *names) == dict(zip(names, ("10s", "6s", "4s"), strict=True))
    given = "&options=-c%20lock_timeout%3D3s%20-c%20statement_timeout%3D1min"
    found = sessions(database + given, *names)
    assert found == dict(zip(names, ("1min", "3s", "4s"), strict=True))


# One replica among others


@pytest.mark.parametrize("work", ["ship", "create a key", "retire", "beat"])
def test_a_replica_vanishes_in_mid_transaction(
    database: str, proxy: SilentProxy, work: str
) -> None:
    """The packets of a replica are dropped while it holds its locks: another one does the same work
    soon after.
    """
    at = datetime.now(UTC)

    def do(store: Store, replica: int) -> None:
        if work == "ship":
            # The same key, hour and user, which are counted in the same rows. Of several decisions,
            # many rows are sent at once.
            other = denied(at, end_user="other")
            store.log.append([denied(at), outcome(denied(at)), other])
        elif work == "create a key":
            store.keys.create(f"app {secrets.token_hex(4)}")
        elif work == "retire":
            store.log.expire(at - timedelta(days=1), 10)
        else:
            store.workers.beat("same", "host", replica)

    with (
        closing(Store(by_way_of(proxy, database), SHORT)) as vanishing,
        closing(Store(database, SHORT)) as other,
    ):
        vanishing.identity()
        event.listen(vanishing._engine, "commit", lambda _: proxy.be_silent())
        with pytest.raises(StoreUnavailable):
            do(vanishing, 1)
        # The other one waits for the locks no longer than a call may take.
        do(other, 2)


def test_replicas_that_ship_at_once_wait_for_no_count(database: str) -> None:
    """A transaction that stands still holds up no replica that counts other keys' decisions."""
    at = datetime.now(UTC)
    with closing(Store(database, 30)) as one, closing(Store(database, 30)) as other:

        def ship_beside(_: object) -> None:
            other.log.append([denied(at, key_id="other")])

        before = other.log.status().decisions
        event.listen(one._engine, "commit", ship_beside)
        # The other one's call ends within this one's commit, or fails.
        one.log.append([denied(at, key_id="one")])
        assert other.log.status().decisions == before + 2


def test_all_connections_are_taken(tmp_path: Path) -> None:
    """The store reports that all connections are taken, and recovers with the first free one."""
    few = PostgreSQL("max_connections=8", "superuser_reserved_connections=0")
    with few, few.database() as url, closing(Store(url, SHORT)) as store:
        store.migrate()
        store._engine.dispose()
        plain = url.replace("+psycopg", "")
        taken = []
        with suppress(psycopg.OperationalError):
            while True:
                taken.append(psycopg.connect(plain))
        with pytest.raises(StoreUnavailable, match="too many clients"):
            store.keys.list()
        for connection in taken:
            connection.close()
        deadline = time.monotonic() + ENOUGH
        while True:
            with suppress(StoreUnavailable):
                assert store.keys.list() == []
                break
            assert time.monotonic() < deadline


# Following settings


async def test_hints_of_a_connection_that_was_lost(database: str, proxy: SilentProxy) -> None:
    """A listener whose packets are dropped notices it, and listens again."""
    with closing(Store(by_way_of(proxy, database), SHORT)) as far, closing(Store(database)) as near:
        keys = StoredKeyTable(far.keys.changes_since, SHORT)
        await keys.refresh()
        following = [asyncio.create_task(keys.follow(3600)), asyncio.create_task(hint(far, keys))]
        for _ in range(2):
            async with asyncio.timeout(2 * ENOUGH):
                await until_followed(near, keys)
            proxy.lose()
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def hint(store: Store, keys: StoredKeyTable) -> None:
    async for _ in store.hints():
        keys.hint()


async def until_followed(store: Store, keys: StoredKeyTable) -> None:
    while True:
        key, _ = await asyncio.to_thread(store.keys.create, f"app {secrets.token_hex(4)}")
        with suppress(RevisionNotReached):
            await keys.wait_for(key.revision, 2)
            return


async def test_settings_are_followed_again(database: str, proxy: SilentProxy) -> None:
    """A database that was silent and speaks again is followed within the deadline."""
    with closing(Store(by_way_of(proxy, database), SHORT)) as far, closing(Store(database)) as near:
        keys = StoredKeyTable(far.keys.changes_since, SHORT)
        await keys.refresh()
        following = asyncio.create_task(keys.follow(0.1))
        proxy.be_silent()
        key, _ = await asyncio.to_thread(near.keys.create, f"app {secrets.token_hex(4)}")
        with pytest.raises(RevisionNotReached):
            await keys.wait_for(key.revision, 2 * SHORT)
        proxy.speak()
        await keys.wait_for(key.revision, ENOUGH)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


# Threads


async def test_a_call_that_hangs_is_given_up() -> None:
    """The caller of a hanging call gets an error, and so do the next callers until it returns."""
    threads = StoreThreads("this test", 0.2)
    with blocked() as hang:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await threads.run(hang)
    await until_it_runs(threads)


@contextmanager
def blocked() -> Iterator[Any]:
    """A call that ends with the block."""
    over = threading.Event()
    yield over.wait
    over.set()


async def until_it_runs(threads: StoreThreads) -> None:
    async with asyncio.timeout(ENOUGH):
        while True:
            with suppress(StoreUnavailable):
                assert await threads.run(int, "7") == 7
                return
            await asyncio.sleep(0.01)


async def test_more_calls_than_may_wait() -> None:
    """Calls beyond the bound fail at once, and those that wait too long in time.

    A caller that goes away makes no room for another, as its call goes on.
    """
    threads = StoreThreads("this test", ENOUGH, at_once=2, waiting=3)
    with blocked() as hang:
        calls = [asyncio.create_task(threads.run(hang)) for _ in range(5)]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.sleep(0)
        with pytest.raises(StoreBusy):
            await threads.run(hang)
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert done[1:] == [True] * 4


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    """The process ends, whatever its threads wait for."""
    program = """if True:
        import asyncio, threading
        from policyd.command.process import run
        from policyd.command.threads import StoreThreads

        async def main():
            asyncio.create_task(StoreThreads("this test", 3600).run(threading.Event().wait))
            await asyncio.sleep(0.1)

        run(main())
        """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False, env=environment()
    )
    assert done.returncode == 0


# SQLite


@pytest.mark.timeout(60 + 5 * FIRST_STARTS)
def test_first_starts_at_once(tmp_path: Path) -> None:
    """Several processes make one new SQLite database at the same moment, again and again."""
    program = """if True:
        import os, sys
        from contextlib import closing
        from policyd.store import Store

        for line in sys.stdin:
            with closing(Store(f"sqlite:///{line.strip()}")) as store:
                store.migrate()
                store.keys.create(f"app {os.getpid()}")
            print("made", flush=True)
        """
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for _ in range(6)
    ]
    for number in range(FIRST_STARTS):
        for one in starters:
            assert one.stdin
            one.stdin.write(f"{tmp_path}/{number}.db\n")
        for one in starters:
            assert one.stdin
            one.stdin.flush()
        for one in starters:
            assert one.stdout
            assert one.stdout.readline() == "made\n"
        with closing(Store(f"sqlite:///{tmp_path}/{number}.db")) as store:
            assert len(store.keys.list()) == len(starters)
    for one in starters:
        one.communicate()
        assert one.returncode == 0


def test_a_new_file_that_another_process_has(tmp_path: Path) -> None:
    """The first start waits for the file, as SQLite itself does not while it adds a WAL."""
    file = tmp_path / "policyd.db"
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    letting_go = threading.Timer(SHORT, holder.execute, ("COMMIT",))
    letting_go.start()
    with closing(Store(f"sqlite:///{file}", ENOUGH)) as store:
        store.migrate()
        assert store.keys.list() == []
    letting_go.join()
    holder.close()


def test_a_locked_file(tmp_path: Path) -> None:
    """Every method ends in time where another process has locked the SQLite file."""
    url = f"sqlite:///{tmp_path}/policyd.db"
    open_store(url).close()
    with closing(sqlite3.connect(tmp_path / "policyd.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        writers = [name for name in CALLS if name != "Log.lose"]

        def call(name: str) -> None:
            with closing(Store(url, SHORT)) as store:
                part, method = name.split(".")
                with suppress(Exception):  # WAL lets readers read.
                    getattr(parts(store)[part], method)(*CALLS[name])

        with ThreadPoolExecutor(len(writers)) as threads:
            list(threads.map(call, writers, timeout=ENOUGH))


def test_a_long_query(tmp_path: Path) -> None:
    """SQLite stops a query that takes too long."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with closing(Store(f"sqlite:///{tmp_path}/policyd.db", SHORT)) as store:
        store.migrate()
        with (
            pytest.raises(StoreUnavailable, match="database-timeout"),
            reading(store._engine) as connection,
        ):
            connection.exec_driver_sql(endless).all()
        assert store.identity()
