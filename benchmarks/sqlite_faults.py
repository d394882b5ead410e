"""Faults of programs, and of a deployment over SQLite."""

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

import aiohttp

from benchmarks.rig import Rig
from benchmarks.striking import (
    Plan,
    back_up,
    children,
    database_file,
    database_files,
    full_disk,
    is_worker,
    replaced,
    send_all,
    struck,
)
from tests.support.machine_clock import wrong_machine_clock
from tests.support.stack import Gateway

_BRIEFLY = ("--policy-timeout", "1")


async def kill_policyd(made: Rig, plan: Plan) -> None:
    """kill -9 of policyd, one process."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        for _ in range(plan.kills):
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            made.replicas.remove(server)
            server = await asyncio.to_thread(made.start_policyd, at=server.grpc)
            await made.more(10)


async def kill_children(made: Rig, plan: Plan) -> None:
    """kill -9 of workers and background worker, `--workers 2`."""
    server = made.start_policyd("--workers", "2")
    made.start_gateway(server.grpc)
    async with struck(made):
        for _ in range(plan.kills):
            victim = random.choice(await children(server))  # keeps no secret
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            await made.more(10)
            await asyncio.sleep(random.random())  # keeps no secret


async def kill_gateway(made: Rig, plan: Plan) -> None:
    """kill -9 of the gateway."""
    server = made.start_policyd()
    gateway = made.start_gateway(server.grpc)
    place = gateway.url.removeprefix("http://")
    async with struck(made):
        for _ in range(plan.kills):
            gateway = made.gateways[0]
            await asyncio.to_thread(gateway.stop, signal.SIGKILL)
            await asyncio.to_thread(made.start_gateway, server.grpc, "--listen", place)
            made.gateways.remove(gateway)
            await made.more(10)


async def pause_group(made: Rig, plan: Plan) -> None:
    """SIGSTOP of all policyd's processes for 15 s, then SIGCONT."""
    server = made.start_policyd("--workers", "2")
    made.start_gateway(server.grpc)
    async with struck(made):
        pids = [server.pid, *await children(server)]
        send_all(pids, signal.SIGSTOP)
        await asyncio.sleep(15)
        send_all(pids, signal.SIGCONT)


async def stop_one_worker(made: Rig, plan: Plan) -> None:
    """SIGSTOP of one worker of two."""
    server = made.start_policyd("--workers", "2")
    made.start_gateway(server.grpc, *_BRIEFLY)
    async with struck(made):
        workers = [pid for pid in await children(server) if is_worker(pid)]
        send_all(workers[:1], signal.SIGSTOP)
        await asyncio.sleep(plan.seconds)


async def rolling_restarts(made: Rig, plan: Plan) -> None:
    """SIGHUP of policyd and of the gateway, `--workers 2` each, again and again."""
    server = made.start_policyd("--workers", "2")
    gateway = made.start_gateway(server.grpc, "--workers", "2")
    async with struck(made):
        for _ in range(plan.restarts):
            await replaced(server, "policyd.server.worker")
            await replaced(gateway, "gateway.worker")


async def many_clients(made: Rig, plan: Plan) -> None:
    """As many busy clients at once."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made, clients=plan.clients):
        await asyncio.sleep(plan.seconds)


async def held_streams(made: Rig, plan: Plan) -> None:
    """As many streams wait for the upstream, at a gateway that may open 1,024 files."""
    server = made.start_policyd()
    gateway = made.start_gateway(server.grpc, files=1024)
    async with struck(made), contextlib.AsyncExitStack() as held:
        await asyncio.to_thread(made.upstream.hold)
        connector = aiohttp.TCPConnector(limit=0)
        session = await held.enter_async_context(aiohttp.ClientSession(connector=connector))
        tasks = [asyncio.create_task(_stream(session, gateway, made)) for _ in range(plan.held)]
        await asyncio.sleep(plan.seconds)
        await asyncio.to_thread(made.upstream.let_go)
        ends = Counter(await asyncio.gather(*tasks))
        sys.stderr.write(f"  the streams ended with {dict(ends)}\n")


async def _stream(session: aiohttp.ClientSession, gateway: Gateway, made: Rig) -> int:
    headers = {"x-usagepanda-api-key": made.key["key"]}
    message = [{"role": "user", "content": secrets.token_hex(8)}]
    body = {"model": "m", "user": "alice", "stream": True, "messages": message}
    try:
        async with session.post(
            f"{gateway.url}/v1/chat/completions", json=body, headers=headers
        ) as answer:
            await answer.read()
            return answer.status
    except (aiohttp.ClientError, OSError):
        return 0


async def sqlite_deleted(made: Rig, plan: Plan) -> None:
    """The SQLite file is deleted, and put back from a backup."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        backup = await asyncio.to_thread(back_up, made)
        for file in database_files(made):
            file.unlink()
        await asyncio.sleep(plan.seconds / 2)
        await asyncio.to_thread(shutil.move, backup, database_file(made))


async def sqlite_replaced(made: Rig, plan: Plan) -> None:
    """A backup is renamed over the SQLite file, twice."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        for _ in range(2):
            backup = await asyncio.to_thread(back_up, made)
            for file in database_files(made)[1:]:
                file.unlink()
            backup.rename(database_file(made))
            await asyncio.sleep(plan.seconds / 2)


async def sqlite_locked(made: Rig, plan: Plan) -> None:
    """Another process locks the SQLite file."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        with contextlib.closing(
            sqlite3.connect(database_file(made), isolation_level=None)
        ) as other:
            other.execute("BEGIN EXCLUSIVE")
            await asyncio.sleep(plan.seconds)
            other.execute("ROLLBACK")


async def clock_ahead(made: Rig, plan: Plan) -> None:
    """A second server whose clock is 100 days ahead."""
    first = made.start_policyd()
    made.start_gateway(first.grpc)
    async with struck(made):
        wrong = await asyncio.to_thread(
            made.start_policyd,
            name="wrong",
            env=wrong_machine_clock(made.folder, timedelta(days=100)),
        )
        made.start_gateway(wrong.grpc)
        await asyncio.sleep(plan.seconds)


async def disk_full_at_start(made: Rig, plan: Plan) -> None:
    """policyd starts on a full disk, with `--log-full drop`; then there is room."""
    with full_disk(made.folder / "small") as (folder, ballast):
        flags = ("--spool", str(folder / "spool"), "--log-full", "drop")
        server = await asyncio.to_thread(made.start_policyd, *flags)
        made.start_gateway(server.grpc)
        async with struck(made):
            await made.more(100)
            ballast.unlink()
        await asyncio.to_thread(server.stop)


ON_SQLITE: dict[str, Callable[[Rig, Plan], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        kill_policyd,
        kill_children,
        kill_gateway,
        pause_group,
        stop_one_worker,
        rolling_restarts,
        many_clients,
        held_streams,
        sqlite_deleted,
        sqlite_replaced,
        sqlite_locked,
        clock_ahead,
        disk_full_at_start,
    )
}
