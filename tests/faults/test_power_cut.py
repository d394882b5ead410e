"""The power fails under load: which answered decisions are lost, for each --spool-sync.

POLICYD_TEST_CUTS sets at how many moments it fails. `pytest --log-level=info -rP` shows the counts.
"""

import asyncio
import logging
import os
import random
import signal
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from policyd.decision_log import spool
from policyd.decision_log.shipper import Shipper
from policyd.decision_log.spool import SpoolReader
from policyd.store import LogFilter, Store
from policyd.store.destination import StoreDestination
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.power_cut import calls, disk_at, strace
from tests.support.processes import Policyd, Program
from tests.support.requirements import program

log = logging.getLogger(__name__)

CUTS = int(os.environ.get("POLICYD_TEST_CUTS", "6"))
LOAD = float(os.environ.get("POLICYD_TEST_CUT_LOAD", "4"))
"""Seconds, of which the database is locked for half, so that entries wait in the spool."""


class Traced(Policyd):
    """A policyd under strace."""

    def __init__(self, folder: Path, traces: Path, *flags: str) -> None:
        self.folder = folder
        self.database_url = f"sqlite:///{folder}/policyd.db"
        Program.__init__(
            self,
            *strace(traces, program("strace", "strace")),
            *(str(Path(sys.executable).with_name("policyd")), "serve"),
            *("--database-url", self.database_url),
            *("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
            *("--admin-token-file", str(folder / "admin-token"), *flags),
            ready=r"policyd is ready: grpc=(\S+) admin=(\S+)",
        )
        self.grpc, self.admin = self.match.groups()


async def _load(policyd: Policyd, key: str) -> list[tuple[float, str]]:
    """When each decision was answered, with its ID."""
    answered = []
    until = time.time() + LOAD

    async def ask(stub: Any) -> None:
        while time.time() < until:
            request = pb.EvaluateRequest(key=key, has_user=False)
            answer = await stub.Evaluate(request, timeout=60)
            answered.append((time.time(), answer.decision_id))
            await asyncio.sleep(0.005)

    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        await asyncio.gather(*(ask(PolicyServiceStub(channel)) for _ in range(4)))
    return answered


def _lock(database: Path, seconds: float) -> None:
    with closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        holder.execute("ROLLBACK")


def _logged(place: Path) -> set[str]:
    """The decisions in the log once policyd has started again on this disk, each once."""
    store = Store(f"sqlite:///{place}/policyd.db")
    store.migrate()
    folder = place / "policyd.db-spool"
    spool.prepare(folder, store.identity())
    reader = SpoolReader(folder)
    Shipper(StoreDestination(store), reader).ship()
    found = {one.id for one in store.log.page(LogFilter(), limit=100_000)}
    now = datetime.now(UTC)
    hours = store.statistics.hours(now - timedelta(days=1), now + timedelta(days=1))
    assert sum(counts.requests for _, counts in hours) == len(found)
    reader.close()
    store.close()
    with closing(sqlite3.connect(place / "policyd.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return found


@pytest.mark.timeout(200 + 10 * CUTS)
@pytest.mark.parametrize("sync", ["always", "interval", "never"])
async def test_the_power_fails(tmp_path: Path, sync: str) -> None:
    """`always` loses no answered decision, `interval` at most those of the last seconds."""
    traces, data = tmp_path / "traces", tmp_path / "data"
    traces.mkdir()
    data.mkdir()
    policyd = Traced(data, traces, "--spool-sync", sync)
    key = policyd.create_key("enforce")
    begun = time.time()
    locking = asyncio.to_thread(_lock, data / "policyd.db", LOAD / 2)
    answered, _ = await asyncio.gather(_load(policyd, key), locking)
    await asyncio.sleep(1)
    for child in _children(policyd.pid):
        os.kill(child, signal.SIGKILL)
    policyd.wait()
    found = calls(traces, data)
    chance = random.Random(sync)
    worst = total = 0
    for number in range(CUTS):
        moment = begun + (number + chance.random()) * (LOAD + 1) / CUTS
        place = tmp_path / f"cut{number}"
        disk_at(moment, found, data, place, random=number % 2 == 1)
        before = {one: at for at, one in answered if at <= moment}
        lost = before.keys() - _logged(place)
        total += len(lost)
        worst = max(worst, len(lost))
        if sync == "always":
            assert not lost
        elif sync == "interval":
            # A second until the sync begins, and as long as that takes on a busy machine.
            assert all(moment - before[one] < 10 for one in lost)
    log.info(
        "%s: %d decisions answered, %d cuts, lost %.1f of them on average, %d at worst",
        *(sync, len(answered), CUTS, total / CUTS, worst),
    )


def _children(pid: int) -> list[int]:
    """policyd's processes, which strace has started; parents last."""
    found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [descendant for one in found for descendant in (*_children(one), one)]
