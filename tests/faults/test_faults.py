"""Killed, stopped and restarted under load, policyd and its gateway forward nothing unchecked.

Every program is a real process. `pytest --log-level=info -rP` shows the counts and times.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.health import health_stub
from tests.support.load import (
    CLIENTS,
    DECIDED,
    MODE,
    PATIENCE,
    WAITS,
    Load,
    MakeStack,
    Stack,
    ask,
    keys,
    under_load,
)
from tests.support.processes import Policyd
from tests.support.stack import Gateway
from tests.support.waiting import until

log = logging.getLogger(__name__)

WAITS_BRIEFLY = "0.5"
SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SEVERAL_POLLS = 0.6
"""Seconds in which policyd looks at its database a few times."""


# policyd goes away


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_policyd_ends_and_is_restarted(make_stack: MakeStack, number: signal.Signals) -> None:
    """Without policyd clients get 503 and nothing is forwarded; with it back, decisions flow."""
    stack = make_stack(policy_timeout=WAITS_BRIEFLY)
    async with under_load(stack) as load:
        status = await asyncio.to_thread(stack.policyd.stop, number)
        await load.more(40, 503)
        await asyncio.to_thread(stack.restart_policyd)
    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_restart_within_the_deadline(make_stack: MakeStack, number: signal.Signals) -> None:
    """The gateway tries again until its deadline, so that no client notices a restart."""
    stack = make_stack()
    async with under_load(stack) as load:
        await asyncio.to_thread(stack.policyd.stop, number)
        await asyncio.to_thread(stack.restart_policyd)
        await load.more(60, *DECIDED)
    assert load.statuses()[503] == 0


async def test_one_policyd_of_two_is_gone(make_stack: MakeStack, start: Callable[..., Any]) -> None:
    """A policyd that is stopped, killed or starting costs no answer: the other is asked."""
    stack = make_stack()
    other = start(Policyd, stack.policyd.folder, database_url=stack.policyd.database_url)
    both = f"{stack.policyd.grpc},{other.grpc}"
    flags = ("--policy-timeout", "4")
    stack.gateway = start(Gateway, both, stack.upstream.url, *flags)
    async with under_load(stack) as load:
        stack.policyd.send(signal.SIGSTOP)
        await load.more(200, *DECIDED)
        await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        await load.more(100, *DECIDED)
        await asyncio.to_thread(stack.restart_policyd)
        other.send(signal.SIGSTOP)
        await load.more(200, *DECIDED)
        other.send(signal.SIGCONT)
    assert load.statuses()[503] == 0


async def test_policyd_is_stopped_and_continued(make_stack: MakeStack) -> None:
    """While policyd is stopped clients get 503 in time, and nothing is forwarded."""
    stack = make_stack(policy_timeout=WAITS_BRIEFLY)
    async with under_load(stack) as load:
        stack.policyd.send(signal.SIGSTOP)
        await load.more(2 * CLIENTS, 503)
        stack.policyd.send(signal.SIGCONT)


async def test_policyd_is_stopped_and_replaced(make_stack: MakeStack) -> None:
    """A policyd that hangs is killed and another started on its port, while the load goes on."""
    stack = make_stack(policy_timeout=WAITS_BRIEFLY)
    async with under_load(stack) as load:
        stack.policyd.send(signal.SIGSTOP)
        await load.more(CLIENTS, 503)
        await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        await asyncio.to_thread(stack.restart_policyd)


# Workers


def children(policyd: Policyd) -> set[int]:
    """The live processes that policyd has started: the workers and the background worker."""
    found = Path(f"/proc/{policyd.pid}/task/{policyd.pid}/children").read_text().split()
    return {int(pid) for pid in found if is_running(int(pid))}


def workers(policyd: Policyd) -> set[int]:
    """The processes that decide."""
    words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(policyd)}
    return {pid for pid, line in words.items() if b"policyd.server.worker" in line}


def listeners(policyd: Policyd) -> int:
    """The number of processes that listen on the callers' port."""
    place = f":{int(policyd.grpc.rpartition(':')[2]):04X}"
    tables = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
    rows = [row.split() for table in tables for row in table.read_text().splitlines()]
    return sum(row[1].endswith(place) and row[3] == "0A" for row in rows)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # It has ended; reaping it is its parent's task.


async def test_workers_are_killed_one_by_one(make_stack: MakeStack) -> None:
    """Each worker that is killed is started again, and the other answers meanwhile.

    So it is with the background worker.
    """
    stack = make_stack("--workers", "2")
    async with under_load(stack) as load:
        for victim in children(stack.policyd):
            kill(victim)
            # Not the listeners alone: those of a killed worker may stay for a moment.
            await until(lambda gone=victim: len(children(stack.policyd) - {gone}) == 3)
            await until(lambda: listeners(stack.policyd) == 2)
            await load.more(40, *DECIDED)
    assert sum("is started again" in line for line in stack.policyd.errors) == 3


async def test_one_worker_of_two_hangs(make_stack: MakeStack) -> None:
    """The other worker answers, whichever hangs, before policyd itself has noticed."""
    stack = make_stack("--workers", "2", policy_timeout="4")
    async with under_load(stack) as load:
        for hanging in workers(stack.policyd):
            os.kill(hanging, signal.SIGSTOP)
            try:
                await load.more(200, *DECIDED)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(hanging, signal.SIGCONT)
    assert load.statuses()[503] == 0


async def test_a_worker_that_hangs_is_replaced(make_stack: MakeStack) -> None:
    """A worker that hangs is killed and replaced, so that its callers do not lose it for good."""
    stack = make_stack("--workers", "2", policy_timeout=WAITS_BRIEFLY)
    async with under_load(stack) as load:
        for hanging in workers(stack.policyd):
            os.kill(hanging, signal.SIGSTOP)
        await load.more(CLIENTS, 503)
        await until(lambda: any("hangs and is killed" in line for line in stack.policyd.errors))
        await until(lambda: listeners(stack.policyd) == 2)
        await load.more(40, *DECIDED)


async def test_the_supervisor_is_killed(make_stack: MakeStack) -> None:
    """Workers end with their supervisor, as their settings would no longer be followed."""
    stack = make_stack("--workers", "2", policy_timeout=WAITS_BRIEFLY)
    async with under_load(stack) as load:
        orphans = children(stack.policyd)
        assert len(orphans) == 3
        stack.policyd.send(signal.SIGKILL)
        try:
            await until(lambda: not any(is_running(pid) for pid in orphans))
        finally:
            for pid in orphans:
                kill(pid)
        await load.more(20, 503)
        await asyncio.to_thread(stack.policyd.wait)
        await asyncio.to_thread(stack.restart_policyd)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# Ending in good order


@pytest.mark.parametrize("count", ["1", "2"])
async def test_sigterm_drains_policyd(
    start: Callable[..., Any], tmp_path: Path, count: str
) -> None:
    """A call that is under way at SIGTERM is answered; then policyd exits with 0."""
    policyd = start(Policyd, tmp_path, "--workers", count)
    key = keys(policyd.database_url, "create", "test")
    policyd.reach(key["revision"])
    waiting = EvaluateRequest(key=key["key"], has_user=True, min_revision=key["revision"] + 1)
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        answer = PolicyServiceStub(channel).Evaluate(waiting, timeout=PATIENCE)
        watch = health_stub(channel).Watch(HealthCheckRequest())
        assert (await watch.read()).status == SERVING  # So the earlier call is under way.
        policyd.send(signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await asyncio.to_thread(keys, policyd.database_url, "set", key["id"], "--name", "changed")
        assert (await answer).decision == DECISION_ALLOW
    assert await asyncio.to_thread(policyd.wait) == 0
    assert not any("Traceback" in line for line in policyd.errors)


async def test_the_gateway_is_killed(make_stack: MakeStack, start: Callable[..., Any]) -> None:
    """policyd goes on, and answers the gateway that replaces the killed one on the same port."""
    stack = make_stack()
    async with under_load(stack):
        pass
    async with aiohttp.ClientSession() as http:
        stack.upstream.hold()
        cut = await ask(http, stack, user="alice", stream=True)
        await asyncio.to_thread(stack.gateway.stop, signal.SIGKILL)
        with pytest.raises(aiohttp.ClientPayloadError):
            await cut.read()
        stack.upstream.let_go()
    place = stack.gateway.url.removeprefix("http://")
    flags = ("--policy-timeout", WAITS, "--listen", place)
    stack.gateway = start(Gateway, stack.policyd.grpc, stack.upstream.url, *flags)
    stack.upstream.forget()
    async with under_load(stack):
        pass
    assert not any("Traceback" in line for line in stack.policyd.errors)


# Settings and the database


async def test_a_change_in_another_process(make_stack: MakeStack) -> None:
    """`policyd keys set` is in force soon in the server that runs."""
    stack = make_stack()
    await change(stack, "off")
    await change(stack, "enforce")


async def change(stack: Stack, mode: str) -> None:
    """Set the key to `mode` in another process, and wait until it is in force."""
    database = stack.policyd.database_url
    (key,) = keys(database, "list")
    load = Load(stack)
    async with load.running():
        await load.more(20, *DECIDED)
        begun = time.monotonic()
        await asyncio.to_thread(keys, database, "set", key["id"], *MODE, mode)
        saved = time.monotonic()
        await load.until_without_user_is(200 if mode == "off" else 422)
    took, more = saved - begun, time.monotonic() - saved
    log.info("%s: the command took %.3f s, and %.3f s after it, it was in force", mode, took, more)
    assert load.statuses()[503] == 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process holds the database."""
    with contextlib.closing(sqlite3.connect(folder / "policyd.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No process may write to the database or beside it; root is not bound by that."""
    files = [*folder.iterdir()]
    for path in (*files, folder):
        path.chmod(path.stat().st_mode & ~0o222)
    yield
    for path in (folder, *files):
        path.chmod(path.stat().st_mode | 0o200)


@contextmanager
def lost(folder: Path) -> Iterator[None]:
    """Move the database's folder away."""
    away = folder.rename(folder.with_name("away"))
    yield
    away.rename(folder)


def spoil(folder: Path) -> None:
    """Overwrite the database with something else."""
    for path in filter(Path.is_file, folder.glob("policyd.db*")):
        with path.open("r+b") as file:
            file.write(b"nonsense" * 1024)


async def test_without_the_database(make_stack: MakeStack) -> None:
    """Decisions go on without the database, and changes are followed once it is back."""
    stack = make_stack()
    async with under_load(stack) as load:
        for disaster in (locked, read_only, lost):
            with disaster(stack.policyd.folder):
                await asyncio.sleep(SEVERAL_POLLS)
                await load.more(60, *DECIDED)
    assert load.statuses()[503] == 0
    assert not any("Traceback" in line for line in stack.policyd.errors)
    await change(stack, "off")


async def test_a_spoilt_database(make_stack: MakeStack) -> None:
    """Decisions go on by the settings that were read before."""
    stack = make_stack()
    async with under_load(stack) as load:
        spoil(stack.policyd.folder)
        await asyncio.sleep(SEVERAL_POLLS)
        await load.more(60, *DECIDED)
    assert load.statuses()[503] == 0
    assert not any("Traceback" in line for line in stack.policyd.errors)
