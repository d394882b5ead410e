"""Keys that rotate and expire, and defaults of the database, on every worker of a server."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from policyd.engine.settings import ServerDefaults
from policyd.engine.states import Mode
from policyd.policies import TABLE
from policyd.store import Store
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.server.test_end_users import ACCEPTED, ADAPTERS
from tests.support.commands import invoke
from tests.support.databases import migrated
from tests.support.processes import Policyd

pytestmark = pytest.mark.slow  # It starts four processes; one worker's part is tested elsewhere.
WORKERS = 2
KEEP = 6
"""Seconds that the secret before stays in force: enough to ask each worker before that."""


@pytest.fixture(scope="module")
def policyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    """A policyd with two workers and a database of its own."""
    folder = migrated(tmp_path_factory.mktemp("rotating"))
    headers = ("--end-user-headers", "x-other", "--end-user-callers", "grpc,http,envoy")
    server = Policyd(
        *(folder, "--workers", str(WORKERS), "--default-mode", "off"),
        *("--http", "127.0.0.1:0", *headers),
    )
    yield server
    assert server.stop() == 0, server.errors


def by_worker(policyd: Policyd, key: str, *, has_user: bool = True) -> dict[str, int]:
    """The status with which each worker denies a request with this key; 0 where it allows it."""
    found: dict[str, int] = {}
    options = [("grpc.use_local_subchannel_pool", 1)]
    until = time.monotonic() + 60
    while len(found) < policyd.workers and time.monotonic() < until:
        with grpc.insecure_channel(policyd.grpc, options) as channel:
            request = pb.EvaluateRequest(key=key, has_user=has_user)
            answer = PolicyServiceStub(channel).Evaluate(request, timeout=30)
        found[answer.decision_id[12:24]] = answer.denial.http_status
    assert len(found) == policyd.workers
    return found


def command(policyd: Policyd, *words: str) -> dict[str, Any]:
    done = invoke("policyd", *words, "--json", "--database-url", policyd.database_url)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def wait_past(moment: str) -> None:
    """Wait until after this moment, which is in this machine's time, as SQLite's is."""
    left = datetime.fromisoformat(moment) - datetime.now(UTC)
    time.sleep(max(left.total_seconds(), 0) + 0.001)


def test_a_rotated_key(policyd: Policyd) -> None:
    """Both secrets are in force on every worker until the older one's time, and then the newer one
    alone; a denial by the older one reads like one by a revoked key."""
    made = command(policyd, "keys", "create", "app")
    policyd.reach(made["revision"])
    assert set(by_worker(policyd, made["key"]).values()) == {0}
    rotated = command(policyd, "keys", "rotate", made["id"], "--keep", f"{KEEP}s")
    policyd.reach(rotated["revision"])
    old = by_worker(policyd, made["key"])
    if datetime.now(UTC) < datetime.fromisoformat(rotated["previous_until"]):
        assert set(old.values()) == {0}
    assert set(by_worker(policyd, rotated["key"]).values()) == {0}
    wait_past(rotated["previous_until"])
    assert set(by_worker(policyd, made["key"]).values()) == {403}
    assert set(by_worker(policyd, rotated["key"]).values()) == {0}
    gone = command(policyd, "keys", "create", "gone")
    policyd.reach(command(policyd, "keys", "revoke", gone["id"])["revision"])
    assert denial(policyd, made["key"]) == denial(policyd, gone["key"])
    trail = invoke("policyd", "audit", "--json", "--database-url", policyd.database_url)
    everything = [json.loads(line) for line in trail.stdout.splitlines()]
    lines = [one for one in everything if one["key_id"] in (made["id"], gone["id"])]
    assert [one["action"] for one in reversed(lines)] == [
        *("key.create", "key.rotate", "key.create", "key.revoke")
    ]
    assert all(one["actor"].startswith("cli ") for one in lines)
    assert made["key"].encode() not in trail.stdout


def denial(policyd: Policyd, key: str) -> tuple[int, bytes]:
    with grpc.insecure_channel(policyd.grpc) as channel:
        request = pb.EvaluateRequest(key=key, has_user=True)
        found = PolicyServiceStub(channel).Evaluate(request, timeout=30).denial
    return found.http_status, found.body


def test_a_key_that_expires_without_its_database(tmp_path: Path) -> None:
    """A key ends in time while the database is away, and no snapshot brings it back."""
    policyd = Policyd(tmp_path, "--workers", str(WORKERS))
    made = command(policyd, "keys", "create", "app", "--expires", f"{KEEP}s")
    policyd.reach(made["revision"])
    found = by_worker(policyd, made["key"])
    if datetime.now(UTC) < datetime.fromisoformat(made["expires_at"]):
        assert set(found.values()) == {0}
    snapshot = tmp_path / "policyd.db-spool" / "snapshot"
    until = time.monotonic() + 60
    while not snapshot.exists() and time.monotonic() < until:
        time.sleep(0.05)
    (tmp_path / "policyd.db").rename(tmp_path / "away.db")
    wait_past(made["expires_at"])
    assert set(by_worker(policyd, made["key"]).values()) == {403}
    policyd.stop()
    (tmp_path / "away.db").rename(tmp_path / "policyd.db")
    again = Policyd(tmp_path)
    assert set(by_worker(again, made["key"]).values()) == {403}
    later = command(again, "keys", "set", made["id"], "--expires", "never")
    again.reach(later["revision"])
    assert set(by_worker(again, made["key"]).values()) == {0}
    assert again.stop() == 0


def test_defaults_of_the_database(policyd: Policyd) -> None:
    """Defaults that were applied hold on every worker, above --default-mode, and for explain."""
    key = policyd.create_key()
    assert set(by_worker(policyd, key, has_user=False).values()) == {0}
    with closing(Store(policyd.database_url)) as store:
        enforced = store.apply([], ServerDefaults(TABLE.with_original(Mode.ENFORCE)))
        policyd.reach(enforced.revision)
        assert set(by_worker(policyd, key, has_user=False).values()) == {422}
        words = ("explain", "--key", key, "--no-user", "--database-url", policyd.database_url)
        assert invoke("policyd", *words).returncode == 1
        taken_back = store.apply([], ServerDefaults())
        policyd.reach(taken_back.revision)
        assert set(by_worker(policyd, key, has_user=False).values()) == {0}
        assert invoke("policyd", *words).returncode == 0


@pytest.mark.parametrize("trusted", ["grpc", "http,envoy"])
def test_trusted_headers_of_the_database(policyd: Policyd, trusted: str) -> None:
    """A header counts from each caller that was applied, in place of those of the server's own
    settings."""
    key = policyd.create_key("enforce", accept=ACCEPTED)
    for ask in ADAPTERS.values():
        assert ask(policyd, key, "alice") == {422}
    with closing(Store(policyd.database_url)) as store:
        applied = store.apply([], ServerDefaults((), ("x-user",), tuple(trusted.split(","))))
        policyd.reach(applied.revision)
        for name, ask in ADAPTERS.items():
            allowed = {0} if name in trusted.split(",") else {422}
            assert ask(policyd, key, "alice") == allowed
            assert ask(policyd, key, "alice", "bob") == {422}
        policyd.reach(store.apply([], ServerDefaults()).revision)
