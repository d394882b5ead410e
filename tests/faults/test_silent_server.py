"""policyd on a database that neither answers nor closes: it decides, ends and recovers.

Every program and database is real.
"""

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import sqlalchemy as sa

from policyd.engine.states import Mode
from policyd.policies import TABLE
from policyd.store import LogFilter, Store
from policyd.v1 import admin_pb2 as pb
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.databases import open_store
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd, environment
from tests.support.silent import SilentProxy
from tests.support.waiting import wait_until

TIMEOUT = 2
"""Seconds after which these servers give a silent database up."""
GRACE = 10
ENOUGH = 30
"""Seconds after which a server is not back: far more than any machine should take."""
FLAGS = ("--database-timeout", str(TIMEOUT), "--grace", str(GRACE))
LEFT = 3
"""policyd's exit status where entries of the log are left in the spool."""
FAULTS = ["frozen", "silent", "no connections", "locked rows", "locked file"]


class Fault:
    """A database, and a fault that it can have."""

    def __init__(self, url: str, begin: Callable[[], object], end: Callable[[], None]) -> None:
        self.url = url
        self.begin = begin
        self.end = end


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fault]:
    if request.param == "locked file":
        with locked_file(tmp_path / "policyd.db") as found:
            yield found
        return
    few = PostgreSQL("max_connections=20", "superuser_reserved_connections=0")
    with few as server, server.database() as url:
        open_store(url).close()
        with FOUND[request.param](server, url) as found:
            yield found


@contextmanager
def frozen(server: PostgreSQL, url: str) -> Iterator[Fault]:
    yield Fault(url, server.freeze, server.thaw)
    server.thaw()


@contextmanager
def silent(server: PostgreSQL, url: str) -> Iterator[Fault]:
    with SilentProxy(server.socket) as proxy:
        name = sa.make_url(url).database
        behind = f"postgresql+psycopg://postgres@{proxy.host}:{proxy.port}/{name}"
        yield Fault(behind, proxy.be_silent, proxy.speak)


@contextmanager
def no_connections(server: PostgreSQL, url: str) -> Iterator[Fault]:
    plain = url.replace("+psycopg", "")
    taken: list[psycopg.Connection[Any]] = []

    def begin() -> None:
        others = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "datname = current_database() AND application_name <> 'taken'"
        )
        taken.append(psycopg.connect(plain, autocommit=True, application_name="taken"))
        # policyd may be quicker to connect again.
        while taken[0].execute(others).fetchall():
            with suppress(psycopg.OperationalError):
                while True:
                    taken.append(psycopg.connect(plain, application_name="taken"))

    def end() -> None:
        for connection in taken:
            connection.close()

    yield Fault(url, begin, end)
    end()


@contextmanager
def locked_rows(server: PostgreSQL, url: str) -> Iterator[Fault]:
    with psycopg.connect(url.replace("+psycopg", "")) as holder:

        def begin() -> None:
            tables = "decisions, revision, api_keys, workers, log_sizes, hourly_counts"
            holder.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE".encode())

        yield Fault(url, begin, holder.rollback)


@contextmanager
def locked_file(file: Path) -> Iterator[Fault]:
    open_store(f"sqlite:///{file}").close()
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:

        def end() -> None:
            if holder.in_transaction:
                holder.execute("ROLLBACK")

        yield Fault(f"sqlite:///{file}", lambda: holder.execute("BEGIN EXCLUSIVE"), end)
        end()


FOUND = {
    "frozen": frozen,
    "silent": silent,
    "no connections": no_connections,
    "locked rows": locked_rows,
}


def decide(server: Policyd, key: str, number: int) -> None:
    """Check that so many requests without a user are denied."""
    with grpc.insecure_channel(server.grpc) as channel:
        ask = PolicyServiceStub(channel).Evaluate
        for _ in range(number):
            answer = ask(EvaluateRequest(key=key, has_user=False), timeout=ENOUGH)
            assert answer.decision == DECISION_DENY


def flagged(url: str) -> int:
    with closing(Store(url)) as store:
        return len(store.log.page(LogFilter(), limit=5000))


def key_of(url: str) -> str:
    with closing(Store(url)) as store:
        return store.keys.create("app", TABLE.with_original(Mode.ENFORCE))[1]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_told_to_end(fault: Fault, tmp_path: Path, start: Callable[..., Any], workers: str) -> None:
    """SIGTERM ends it though the fault lasts, and its status and last log lines tell what is left.

    The next start ships that.
    """
    key = key_of(fault.url)
    server = start(Policyd, tmp_path, *FLAGS, "--workers", workers, database_url=fault.url)
    fault.begin()
    # In the middle of each thread's work.
    time.sleep(1.5 * TIMEOUT)
    decide(server, key, 20)
    # It ends while the fault still lasts.
    status = server.stop()
    fault.end()
    assert status == LEFT, server.errors
    assert "bytes of the decision log wait in" in server.errors[-1]
    again = start(Policyd, tmp_path, *FLAGS, database_url=fault.url)
    assert again.stop() == 0
    assert flagged(fault.url) == 20


@pytest.mark.timeout(240)
def test_it_comes_back(fault: Fault, tmp_path: Path, start: Callable[..., Any]) -> None:
    """Decisions go on meanwhile; then settings are followed and the log is shipped again."""
    key = key_of(fault.url)
    server = start(Policyd, tmp_path, *FLAGS, database_url=fault.url)
    fault.begin()
    decide(server, key, 20)
    time.sleep(2 * TIMEOUT)
    decide(server, key, 20)
    fault.end()
    wait_until(lambda: flagged(fault.url) == 40)
    with closing(Store(fault.url)) as store:
        changed, _ = store.keys.create("later")
    server.reach(changed.revision)
    assert server.stop() == 0


@pytest.mark.timeout(240)
def test_told_to_end_while_it_starts(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """SIGTERM ends a policyd that waits for a silent database to start."""
    with postgresql.database() as url, SilentProxy(postgresql.socket) as proxy:
        proxy.be_silent()
        name = sa.make_url(url).database
        behind = f"postgresql+psycopg://postgres@{proxy.host}:{proxy.port}/{name}"
        program = "from policyd.cli.main import main; main()"
        flags = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--database-timeout", "60")
        server = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--database-url", behind, *flags],
            cwd=tmp_path,
            env=environment(),
        )
        wait_until(lambda: proxy.accepted > 0)
        server.terminate()
        assert server.wait() == 0


# Administration


@asynccontextmanager
async def administration(server: Policyd) -> AsyncIterator[Any]:
    token = (server.folder / "admin-token").read_text().strip()
    call = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": ENOUGH}
    async with grpc.aio.insecure_channel(server.admin) as channel:
        stub: Any = AdminServiceStub(channel)
        yield lambda method, request: getattr(stub, method)(request, **call)


async def test_calls_that_wait_hold_up_no_change(
    postgresql: PostgreSQL, tmp_path: Path, start: Callable[..., Any]
) -> None:
    """However many callers wait for the log, an administrator can change a key, and the change is
    in force. Callers beyond the bound fail at once, the others in time.
    """
    with postgresql.database() as url:
        open_store(url).close()
        key = key_of(url)
        server = start(Policyd, tmp_path, *FLAGS, database_url=url)
        plain = url.replace("+psycopg", "")
        with psycopg.connect(plain) as holder:
            holder.execute("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE")
            async with administration(server) as call:
                lists = [
                    asyncio.ensure_future(call("ListDecisions", pb.ListDecisionsRequest()))
                    for _ in range(100)
                ]
                await asyncio.wait(lists, return_when=asyncio.FIRST_COMPLETED)
                waiting = sum(not one.done() for one in lists)
                listed = await call("ListApiKeys", pb.ListApiKeysRequest())
                (found,) = listed.api_keys
                revoked = await call("RevokeApiKey", pb.RevokeApiKeyRequest(id=found.id))
                await asyncio.to_thread(server.reach, revoked.api_key.revision)
                assert sum(not one.done() for one in lists) > 0
                answers = await asyncio.gather(*lists, return_exceptions=True)
        codes = {one.code().name for one in answers if isinstance(one, grpc.aio.AioRpcError)}
        assert waiting < 100
        assert codes == {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
        with grpc.insecure_channel(server.grpc) as channel:
            asked = EvaluateRequest(key=key, has_user=True)
            assert PolicyServiceStub(channel).Evaluate(asked).denial.http_status == 403
        assert server.stop() == 0
