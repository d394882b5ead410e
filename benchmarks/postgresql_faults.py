"""Faults of a deployment over PostgreSQL."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable

import psycopg

from benchmarks.rig import Rig
from benchmarks.striking import (
    Plan,
    behind,
    children,
    is_worker,
    struck,
)
from tests.support.load import keys
from tests.support.postgresql import PostgreSQL
from tests.support.silent import SilentProxy

_END_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""


async def postgresql_stopped(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """PostgreSQL is stopped; meanwhile each worker is killed."""
    server = made.start_policyd("--workers", "2")
    made.start_gateway(server.grpc)
    async with struck(made):
        await asyncio.to_thread(postgres.stop)
        for worker in [pid for pid in await children(server) if is_worker(pid)]:
            os.kill(worker, signal.SIGKILL)
            await asyncio.sleep(plan.seconds / 2)
            await made.more(20)
        await asyncio.to_thread(postgres.start)


async def postgresql_restarted_policyd(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """policyd is killed and started again while PostgreSQL is stopped."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(server.stop, signal.SIGKILL)
        made.replicas.remove(server)
        await asyncio.to_thread(made.start_policyd, at=server.grpc)
        await made.more(50)
        await asyncio.to_thread(postgres.start)


async def postgresql_paused(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """PostgreSQL is stopped by SIGSTOP, and goes on."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        postgres.freeze()
        await asyncio.sleep(plan.seconds)
        postgres.thaw()


async def postgresql_silent(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """A proxy before PostgreSQL acknowledges, and passes nothing on."""
    with SilentProxy(postgres.socket) as proxy:
        server = made.start_policyd(database_url=behind(proxy, made))
        made.start_gateway(server.grpc)
        async with struck(made):
            proxy.be_silent()
            await asyncio.sleep(plan.seconds)
            proxy.speak()


async def replica_vanishes(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """One replica's packets to PostgreSQL are dropped in the middle of what it ships."""
    first = made.start_policyd()
    made.start_gateway(first.grpc)
    with SilentProxy(postgres.socket) as proxy:
        other = made.start_policyd(database_url=behind(proxy, made), name="other")
        made.start_gateway(other.grpc)
        async with struck(made):
            proxy.lose()
            proxy.be_silent()
            await asyncio.sleep(plan.seconds)
            proxy.speak()


async def postgresql_full(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """PostgreSQL is out of connections."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        with contextlib.ExitStack() as held:
            made.query(_END_OTHERS)
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    held.enter_context(made.connect())
            await asyncio.sleep(plan.seconds)


async def postgresql_failed_over(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """PostgreSQL comes back as it was some seconds ago, as after an asynchronous failover."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with struck(made):
        await asyncio.to_thread(postgres.keep)
        await made.more(50)
        await asyncio.to_thread(keys, made.database_url, "set", made.key["id"], "--name", "lost")
        await made.more(50)
        await asyncio.sleep(2)
        await asyncio.to_thread(postgres.go_back)


ON_POSTGRESQL: dict[str, Callable[[Rig, Plan, PostgreSQL], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        postgresql_stopped,
        postgresql_restarted_policyd,
        postgresql_paused,
        postgresql_silent,
        replica_vanishes,
        postgresql_full,
        postgresql_failed_over,
    )
}
