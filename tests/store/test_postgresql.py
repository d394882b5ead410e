"""policyd with PostgreSQL as its database, as a real process."""

import asyncio
import secrets
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from policyd.engine.settings import ApiKey
from policyd.errors import RevisionNotReached
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.store import Store
from policyd.v1.policy_pb2 import DECISION_ALLOW, DECISION_DENY, EvaluateRequest, EvaluateResponse
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.commands import invoke
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd, run


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serving(postgresql: PostgreSQL, tmp_path: Path, workers: str) -> None:
    """A key that one policyd makes is in force in another one on the same database."""
    with postgresql.database() as url:
        first = Policyd(tmp_path, "--workers", workers, database_url=url)
        second = Policyd(tmp_path, database_url=url)
        key = first.create_key("enforce")
        revision = _ask(first, EvaluateRequest(key=key, has_user=True)).revision
        asked = EvaluateRequest(key=key, has_user=False, min_revision=revision)
        for server in (first, second):
            assert _ask(server, asked).decision == DECISION_DENY
        asked.has_user = True
        assert _ask(second, asked).decision == DECISION_ALLOW
        assert [first.stop(), second.stop()] == [0, 0]
        assert not (tmp_path / "policyd.db").exists()


def test_a_revoked_key(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """A running server denies a key that the command line has revoked."""
    with postgresql.database() as url:
        server = Policyd(tmp_path, database_url=url)
        key = server.create_key("off")
        answer = _ask(server, EvaluateRequest(key=key, has_user=False))
        assert answer.decision == DECISION_ALLOW
        done = run("policyd", "keys", "revoke", answer.api_key_id, "--database-url", url)
        assert done.returncode == 0, done.stderr
        asked = EvaluateRequest(key=key, has_user=True, min_revision=answer.revision + 1)
        assert _ask(server, asked).denial.http_status == 403
        assert server.stop() == 0


async def test_hints(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """A hint has a change followed at once, without waiting for the next poll.

    A lost connection is replaced.
    """
    with postgresql.database() as url, closing(Store(url)) as store:
        store.migrate()
        keys = StoredKeyTable(store.keys.changes_since)
        await keys.refresh()
        listening = [
            asyncio.create_task(keys.follow(3600)),
            asyncio.create_task(hint(store, keys)),
        ]
        for _ in range(2):
            key = await until_followed(store, keys)
            assert keys.revision >= key.revision
            # Each listener is cut off, and listens again.
            await asyncio.to_thread(cut_connections, url)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


async def hint(store: Store, keys: StoredKeyTable) -> None:
    async for _ in store.hints():
        keys.hint()


async def until_followed(store: Store, keys: StoredKeyTable) -> ApiKey:
    """A key that was followed. Hints are lost while no worker listens, so there are some more."""
    while True:
        key, _ = await asyncio.to_thread(store.keys.create, f"app {secrets.token_hex(4)}")
        with suppress(RevisionNotReached):
            await keys.wait_for(key.revision, 2)
            return key


def cut_connections(url: str) -> None:
    engine = sa.create_engine(url)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%'"
    with engine.connect() as connection:
        connection.exec_driver_sql(others)
    engine.dispose()


def test_no_server() -> None:
    """A PostgreSQL that cannot be reached is named as the cause, without the password."""
    url = "postgresql+psycopg://policyd:hunter2@127.0.0.1:1/policyd"
    done = invoke("policyd", "keys", "list", "--database-url", url)
    assert done.returncode == 1
    assert b"the database cannot be used" in done.stderr
    assert b"hunter2" not in done.stderr + done.stdout


def _ask(server: Policyd, request: EvaluateRequest) -> EvaluateResponse:
    with grpc.insecure_channel(server.grpc) as channel:
        return PolicyServiceStub(channel).Evaluate(request, timeout=30)
