"""A server starts, and recovers, whatever is away: its database, or room on its disk."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from policyd.keys import snapshot_format
from policyd.keys.snapshot import SnapshotFile
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    BatchEvaluateItem,
    BatchEvaluateRequest,
    CheckKeyRequest,
    EvaluateRequest,
)
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.faults.test_faults import kill, listeners, workers
from tests.support.commands import invoke
from tests.support.health import health_stub
from tests.support.load import DECIDED, MODE, PATIENCE, MakeStack, keys, under_load
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd, run
from tests.support.requirements import missing
from tests.support.running import failure
from tests.support.waiting import until

CODE = grpc.StatusCode
SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
FULL = 2**18
"""Bytes of a disk that is full soon."""


# The database is away


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process holds the SQLite database."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def gone(file: Path) -> Iterator[None]:
    """The disk with the SQLite database is not mounted."""
    away = file.parent.rename(file.parent.with_name("away"))
    yield
    away.rename(file.parent)


@contextmanager
def stopped(server: PostgreSQL) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@contextmanager
def silent(server: PostgreSQL) -> Iterator[None]:
    """Have the database accept connections, and answer none."""
    server.freeze()
    yield
    server.thaw()


@pytest.fixture(params=["locked", "gone", "stopped", "silent"])
def away(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """The URL of a new database, and what takes it away."""
    if request.param in ("locked", "gone"):
        (tmp_path / "disk").mkdir()
        file = tmp_path / "disk" / "policyd.db"
        ways = {"locked": locked, "gone": gone}
        yield f"sqlite:///{file}", lambda: ways[request.param](file)
        return
    with PostgreSQL() as server, server.database() as url:
        other = {"stopped": stopped, "silent": silent}
        yield url, lambda: other[request.param](server)


def kept(policyd: Policyd) -> Path:
    """The server's snapshot."""
    return policyd.folder / "policyd.db-spool" / "snapshot"


async def is_kept(policyd: Policyd, revision: int) -> None:
    """Wait until the snapshot has this revision."""

    def has_it() -> bool:
        head = SnapshotFile(kept(policyd)).head()
        return head is not None and head.revision >= revision

    await until(has_it)


async def health(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        request = HealthCheckRequest(service=service)
        return int((await health_stub(channel).Check(request, timeout=PATIENCE)).status)


async def change(policyd: Policyd, key_id: str) -> None:
    """Check that a change is followed again."""
    made = await asyncio.to_thread(keys, policyd.database_url, "set", key_id, *MODE, "off")
    await asyncio.to_thread(policyd.reach, made["revision"])


@pytest.mark.timeout(300)
# SQLite lets no process lock a file that others read.
@pytest.mark.parametrize("away", ["gone", "stopped", "silent"], indirect=True)
async def test_workers_are_killed_while_the_database_is_away(
    make_stack: MakeStack, away: tuple[str, Any]
) -> None:
    """Each worker is started again and decides as before; then the database is followed again."""
    url, is_away = away
    stack = make_stack("--workers", "2", database_url=url)
    (key,) = await asyncio.to_thread(keys, url, "list")
    await is_kept(stack.policyd, key["revision"])
    async with under_load(stack) as load:
        with is_away():
            for victim in workers(stack.policyd):
                kill(victim)
                # Not the listeners alone: those of a killed worker may stay for a moment.
                await until(lambda gone=victim: len(workers(stack.policyd) - {gone}) == 2)
                await until(lambda: listeners(stack.policyd) == 2)
                await load.more(60, *DECIDED)
            asked = len(load.answers)
            await load.more(60)
            assert {one.status for one in load.answers[asked:]} <= DECIDED
            assert await health(stack.policyd.grpc) == SERVING
    told = [line for line in stack.policyd.errors if "Decisions are made by the snapshot" in line]
    assert len(told) == 2, "\n".join(stack.policyd.errors)
    await change(stack.policyd, key["id"])
    assert not [line for line in stack.policyd.errors if "Traceback" in line]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", ["1", "2"])
async def test_a_server_that_starts_while_the_database_is_away(
    start: Callable[..., Any], tmp_path: Path, away: tuple[str, Any], count: str
) -> None:
    """The server decides by the snapshot, logs so, and follows the database once it is back."""
    url, is_away = away
    flags = ("--workers", count)
    policyd = start(Policyd, tmp_path, *flags, database_url=url)
    key = policyd.create_key("enforce")
    (known,) = keys(url, "list")
    await is_kept(policyd, known["revision"])
    policyd.stop(signal.SIGKILL)
    with is_away():
        policyd = await asyncio.to_thread(
            start, Policyd, tmp_path, *flags, "--http", "127.0.0.1:0", database_url=url
        )
        async with grpc.aio.insecure_channel(policyd.grpc) as channel:
            asked = EvaluateRequest(key=key, has_user=False)
            answer = await PolicyServiceStub(channel).Evaluate(asked, timeout=PATIENCE)
        assert (answer.decision, answer.revision) == (DECISION_DENY, known["revision"])
        for service in ("", "liveness", "settings"):
            assert await health(policyd.grpc, service) == SERVING
        assert await probed(policyd) == (200, 200, 200)
        told = "".join(policyd.errors)
        assert f"by the snapshot in {kept(policyd)}: revision {known['revision']}, of 1" in told
    await change(policyd, known["id"])
    assert "the database" in "".join(policyd.errors)


async def probed(policyd: Policyd) -> tuple[int, ...]:
    """What the HTTP check answers to the probes of life, readiness and settings."""
    async with aiohttp.ClientSession() as http:
        statuses = []
        for path in ("/healthz", "/readyz", "/settingsz"):
            async with http.get(f"http://{policyd.http}{path}") as answer:
                statuses.append(answer.status)
        return tuple(statuses)


def _damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _of_another_database(path: Path) -> None:
    (path.parent / "database").write_text("another")


def _of_the_future(path: Path) -> None:
    file = SnapshotFile(path)
    head = file.head()
    assert head is not None
    file._renew(head, time.time() + 2 * snapshot_format.FUTURE)


UNUSABLE: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "none": (Path.unlink, (), "there is none"),
    "damaged": (_damaged, (), "damaged"),
    "another": (_of_another_database, (), "another database"),
    "future": (_of_the_future, (), "from the future"),
    "old": (lambda _: time.sleep(1), ("--snapshot-max-age", "0.0001"), "--snapshot-max-age allows"),
    "never": (lambda _: None, ("--snapshot-max-age", "0"), "--snapshot-max-age 0"),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "count"), [*((kind, "1") for kind in UNUSABLE), ("none", "2")])
async def test_without_a_snapshot_to_use(
    start: Callable[..., Any], tmp_path: Path, unused_port: Callable[[], int], kind: str, count: str
) -> None:
    """Without a snapshot a server listens, is alive, and answers that it cannot decide yet.

    It decides once the database is there, and is ready only then.
    """
    spoil, flags, reason = UNUSABLE[kind]
    (tmp_path / "disk").mkdir()
    file = tmp_path / "disk" / "policyd.db"
    url = f"sqlite:///{file}"
    policyd = start(Policyd, tmp_path, database_url=url)
    key = policyd.create_key("enforce")
    await is_kept(policyd, keys(policyd.database_url, "list")[0]["revision"])
    policyd.stop()
    spoil(kept(policyd))
    place, http = f"127.0.0.1:{unused_port()}", f"127.0.0.1:{unused_port()}"
    flags = ("--workers", count, "--grpc", place, "--http", http, *flags)
    with locked(file) if kind == "none" else gone(file):
        starting = asyncio.create_task(
            asyncio.to_thread(start, Policyd, tmp_path, *flags, database_url=url)
        )
        await _can_be_reached(place, http)
        await _cannot_decide(place, http, key)
        assert not starting.done()
    policyd = await starting
    async with grpc.aio.insecure_channel(place) as channel:
        asked = EvaluateRequest(key=key, has_user=True)
        answer = await PolicyServiceStub(channel).Evaluate(asked, timeout=PATIENCE)
        assert answer.decision == DECISION_ALLOW
    assert await health(place) == SERVING
    async with asyncio.timeout(PATIENCE):
        while await probed(policyd) != (200, 200, 200):
            await asyncio.sleep(0.1)  # The answer to a probe is reused for a second.
    assert reason in "".join(policyd.errors)


async def _can_be_reached(*places: str) -> None:
    async with asyncio.timeout(PATIENCE):
        for place in places:
            host, _, port = place.rpartition(":")
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break


async def _cannot_decide(place: str, http: str, key: str) -> None:
    nothing = (CODE.UNAVAILABLE, "SETTINGS_UNKNOWN")
    asked = EvaluateRequest(key=key, has_user=True)
    async with grpc.aio.insecure_channel(place) as channel:
        stub = PolicyServiceStub(channel)
        assert await failure(stub.Evaluate(asked, timeout=PATIENCE)) == nothing
        # Not even a request without a key is denied.
        assert await failure(stub.Evaluate(EvaluateRequest(), timeout=PATIENCE)) == nothing
        assert await failure(stub.CheckKey(CheckKeyRequest(key=key), timeout=PATIENCE)) == nothing
        batch = BatchEvaluateRequest(items=[BatchEvaluateItem(id="1", request=asked)])
        assert await failure(stub.BatchEvaluate(batch, timeout=PATIENCE)) == nothing
    assert await health(place, "liveness") == SERVING
    for service in ("", "policyd.v1.PolicyService", "settings"):
        assert await health(place, service) == NOT_SERVING
    async with aiohttp.ClientSession() as session:
        for path, status in (("/healthz", 200), ("/readyz", 503), ("/settingsz", 503)):
            async with session.get(f"http://{http}{path}") as answer:
                assert answer.status == status
        headers = {"X-Usagepanda-Api-Key": key}
        async with session.post(
            f"http://{http}/v1/evaluate", json={"key": key}, headers=headers
        ) as answer:
            assert answer.status == 503
            assert "Retry-After" in answer.headers


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "--database-url is not usable"),
        ("mysql+nodriver://root@localhost/policyd", "--database-url is not usable"),
        ("sqlite://", "must name a file"),
        ("sqlite:////nowhere/at/all/policyd.db", "there is no folder"),
    ],
)
@pytest.mark.parametrize("count", ["1", "2"])
def test_what_is_no_outage(tmp_path: Path, url: str, message: str, count: str) -> None:
    """Settings that cannot work end the start at once, with a message that names what is wrong."""
    done = run(
        *("policyd", "serve", "--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
        *("--database-url", url, "--spool", str(tmp_path / "spool"), "--workers", count),
        *("--admin-token-file", str(tmp_path / "token")),
    )
    assert done.returncode == 2
    assert message in done.stderr.decode()


def test_a_start_loads_what_it_needs() -> None:
    """Code that only some servers need, or none at its start, delays no decision."""
    heavy = ("alembic", "aiohttp", "genai_prices", "jinja2", "starlette", "uvicorn", "psycopg")
    loaded = _loaded("policyd.server.worker")
    assert {"grpc", "sqlalchemy"} <= loaded
    assert not loaded.intersection(heavy)
    # A supervisor waits for nothing that its workers load.
    supervising = _loaded("policyd.cli.main", "policyd.server.supervisor")
    assert not supervising.intersection((*heavy, "grpc", "google.protobuf", "sqlalchemy"))


def _loaded(*modules: str) -> set[str]:
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(done.stdout.decode().split())


# The disk is full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={4 * FULL}", "tmpfs", str(folder))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        missing("only root can make a disk that is full soon")
    yield folder
    # The processes of a killed policyd end a moment after it.
    subprocess.run(("umount", "--lazy", str(folder)), check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Leave no room on the disk, and none for a new file either."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    files = f"nr_inodes={_files(disk)}"
    subprocess.run(("mount", "-o", f"remount,{files}", str(disk)), check=True)
    yield
    subprocess.run(("mount", "-o", "remount,nr_inodes=1000", str(disk)), check=True)
    filler.unlink()


def _files(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_files - found.f_ffree


@pytest.mark.timeout(180)
@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("drops", [False, True])
async def test_the_spools_disk_is_full(
    start: Callable[..., Any], tmp_path: Path, disk: Path, drops: bool, count: str
) -> None:
    """A server starts on a full disk.

    It drops and counts the decisions that it makes, or it makes none; once there is room it works
    as before.
    """
    policyd = start(Policyd, tmp_path)
    key = policyd.create_key("enforce")
    policyd.stop()
    flags = ("--spool", str(disk / "spool"), "--log-full", "drop" if drops else "deny")
    asked = EvaluateRequest(key=key, has_user=False)
    with full(disk):
        policyd = await asyncio.to_thread(start, Policyd, tmp_path, *flags, "--workers", count)
        async with grpc.aio.insecure_channel(policyd.grpc) as channel:
            evaluate = PolicyServiceStub(channel).Evaluate
            for _ in range(5):
                if drops:
                    answer = await evaluate(asked, timeout=PATIENCE)
                    assert answer.decision == DECISION_DENY
                else:
                    refused = await failure(evaluate(asked, timeout=PATIENCE))
                    assert refused == (CODE.RESOURCE_EXHAUSTED, "LOG_FULL")
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        evaluate = PolicyServiceStub(channel).Evaluate
        answer = await evaluate(asked, timeout=PATIENCE)
        assert answer.decision == DECISION_DENY
    async with asyncio.timeout(PATIENCE):
        # The background worker, too, is started once there is room.
        while await _counted(policyd.database_url) != (1, 5 * drops):
            await asyncio.sleep(0.1)
    assert await asyncio.to_thread(policyd.stop) == 0
    assert not [line for line in policyd.errors if "Traceback" in line]


async def _counted(database_url: str) -> tuple[int, int]:
    """The number of decisions in the log, and of those lost."""
    command = ("policyd", "logs", "status", "--json", "--database-url", database_url)
    done = await asyncio.to_thread(invoke, *command)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    return status["decisions"], status["lost"]


@pytest.mark.timeout(180)
async def test_every_disk_is_full(start: Callable[..., Any], disk: Path) -> None:
    """A server that ran there before decides by what it has: all of it is on that disk."""
    flags = ("--log-full", "drop")
    policyd = start(Policyd, disk, *flags)
    key = policyd.create_key("enforce")
    await is_kept(policyd, keys(policyd.database_url, "list")[0]["revision"])
    policyd.stop(signal.SIGKILL)
    with full(disk):
        policyd = await asyncio.to_thread(start, Policyd, disk, *flags)
        async with grpc.aio.insecure_channel(policyd.grpc) as channel:
            asked = EvaluateRequest(key=key, has_user=False)
            answer = await PolicyServiceStub(channel).Evaluate(asked, timeout=PATIENCE)
            assert answer.decision == DECISION_DENY
    # With room, changes are made, and followed, again.
    (known,) = await asyncio.to_thread(keys, policyd.database_url, "list")
    await change(policyd, known["id"])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("count", ["1", "2"])
async def test_the_first_start_on_a_full_disk(
    start: Callable[..., Any], disk: Path, unused_port: Callable[[], int], count: str
) -> None:
    """The first start waits for room, and then makes everything that is missing, the token and the
    console included.
    """
    place, http = f"127.0.0.1:{unused_port()}", f"127.0.0.1:{unused_port()}"
    flags = ("--grpc", place, "--http", http, "--console", "127.0.0.1:0", "--workers", count)
    with full(disk):
        starting = asyncio.create_task(asyncio.to_thread(start, Policyd, disk, *flags))
        await _can_be_reached(place, http)
        await _cannot_decide(place, http, "up-" + "x" * 48)
        assert not (disk / "admin-token").exists()
    policyd = await starting
    key = await asyncio.to_thread(policyd.create_key, "enforce")
    async with grpc.aio.insecure_channel(place) as channel:
        asked = EvaluateRequest(key=key, has_user=False)
        answer = await PolicyServiceStub(channel).Evaluate(asked, timeout=PATIENCE)
        assert answer.decision == DECISION_DENY
    await until((disk / "admin-token").exists)
    await until(lambda: any("one-time link" in line for line in policyd.output))
