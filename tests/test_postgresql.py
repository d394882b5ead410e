"""policyd with PostgreSQL as its database, as a real process."""

from pathlib import Path

import grpc
import pytest

from policyd.v1.policy_pb2 import DECISION_ALLOW, DECISION_DENY, EvaluateRequest, EvaluateResponse
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.postgresql import PostgreSQL
from tests.processes import Policyd, run


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serving(postgresql: PostgreSQL, tmp_path: Path, workers: str) -> None:
    """Keys that one policyd makes are in force in another one on the same database."""
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
    """A key that the command line revokes is refused by a server that runs."""
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


def test_no_server() -> None:
    """A PostgreSQL that cannot be reached is named as the cause, without the password."""
    url = "postgresql+psycopg://policyd:hunter2@127.0.0.1:1/policyd"
    done = run("policyd", "keys", "list", "--database-url", url)
    assert done.returncode == 1
    assert b"the database cannot be used" in done.stderr
    assert b"hunter2" not in done.stderr + done.stdout


def _ask(server: Policyd, request: EvaluateRequest) -> EvaluateResponse:
    with grpc.insecure_channel(server.grpc) as channel:
        return PolicyServiceStub(channel).Evaluate(request, timeout=30)
