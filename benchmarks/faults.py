"""What faults cost a whole deployment under load: `python -m benchmarks.faults`.

Prints a Markdown table. Lost, unchecked and repeated requests are found by comparing request by
request: see rig.py. `--root DIR` runs the same faults on the servers of another checkout.
"""

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import aiohttp
import click
import psycopg
import sqlalchemy as sa

from benchmarks.rig import Counts, Rig, count, rig
from benchmarks.rounds import table
from tests.support import processes
from tests.support.load import keys
from tests.support.machine_clock import wrong_machine_clock
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd
from tests.support.silent import SilentProxy
from tests.support.stack import Background, Gateway

_END_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""
_BRIEFLY = ("--policy-timeout", "1")


class Report(NamedTuple):
    """What one fault did."""

    name: str
    counts: Counts
    longest: float
    """The longest time without any decision, in seconds."""
    recovered: float | None
    """Seconds after the fault until decisions, log and settings were all as before."""
    before: float
    during: float
    """Milliseconds within which 99 of 100 decisions came."""


class Plan(NamedTuple):
    """How much of each fault there is."""

    seconds: float = 20.0
    """Seconds that a fault lasts."""
    kills: int = 50
    restarts: int = 100
    held: int = 1200
    clients: int = 400


# Faults


async def kill_policyd(made: Rig, plan: Plan) -> None:
    """kill -9 of policyd, one process."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with _struck(made):
        for _ in range(plan.kills):
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            made.replicas.remove(server)
            server = await asyncio.to_thread(made.start_policyd, at=server.grpc)
            await made.more(10)


async def kill_children(made: Rig, plan: Plan) -> None:
    """kill -9 of workers and background worker, `--workers 2`."""
    server = made.start_policyd("--workers", "2")
    made.start_gateway(server.grpc)
    async with _struck(made):
        for _ in range(plan.kills):
            victim = random.choice(await _children(server))  # keeps no secret
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            await made.more(10)
            await asyncio.sleep(random.random())  # keeps no secret


async def kill_gateway(made: Rig, plan: Plan) -> None:
    """kill -9 of the gateway."""
    server = made.start_policyd()
    gateway = made.start_gateway(server.grpc)
    place = gateway.url.removeprefix("http://")
    async with _struck(made):
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
    async with _struck(made):
        pids = [server.pid, *await _children(server)]
        _signal(pids, signal.SIGSTOP)
        await asyncio.sleep(15)
        _signal(pids, signal.SIGCONT)


async def stop_one_worker(made: Rig, plan: Plan) -> None:
    """SIGSTOP of one worker of two."""
    server = made.start_policyd("--workers", "2")
    made.start_gateway(server.grpc, *_BRIEFLY)
    async with _struck(made):
        workers = [pid for pid in await _children(server) if _is_worker(pid)]
        _signal(workers[:1], signal.SIGSTOP)
        await asyncio.sleep(plan.seconds)


async def rolling_restarts(made: Rig, plan: Plan) -> None:
    """SIGHUP of policyd and of the gateway, `--workers 2` each, again and again."""
    server = made.start_policyd("--workers", "2")
    gateway = made.start_gateway(server.grpc, "--workers", "2")
    async with _struck(made):
        for _ in range(plan.restarts):
            await _replaced(server, "policyd.server.worker")
            await _replaced(gateway, "gateway.worker")


async def many_clients(made: Rig, plan: Plan) -> None:
    """As many busy clients at once."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with _struck(made, clients=plan.clients):
        await asyncio.sleep(plan.seconds)


async def held_streams(made: Rig, plan: Plan) -> None:
    """As many streams wait for the upstream, at a gateway that may open 1,024 files."""
    server = made.start_policyd()
    gateway = made.start_gateway(server.grpc, files=1024)
    async with _struck(made), contextlib.AsyncExitStack() as held:
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
    async with _struck(made):
        backup = await asyncio.to_thread(_backup, made)
        for file in _files(made):
            file.unlink()
        await asyncio.sleep(plan.seconds / 2)
        await asyncio.to_thread(shutil.move, backup, _database(made))


async def sqlite_replaced(made: Rig, plan: Plan) -> None:
    """A backup is renamed over the SQLite file, twice."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with _struck(made):
        for _ in range(2):
            backup = await asyncio.to_thread(_backup, made)
            for file in _files(made)[1:]:
                file.unlink()
            backup.rename(_database(made))
            await asyncio.sleep(plan.seconds / 2)


async def sqlite_locked(made: Rig, plan: Plan) -> None:
    """Another process locks the SQLite file."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with _struck(made):
        with contextlib.closing(sqlite3.connect(_database(made), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            await asyncio.sleep(plan.seconds)
            other.execute("ROLLBACK")


async def clock_ahead(made: Rig, plan: Plan) -> None:
    """A second server whose clock is 100 days ahead."""
    first = made.start_policyd()
    made.start_gateway(first.grpc)
    async with _struck(made):
        wrong = await asyncio.to_thread(
            made.start_policyd,
            name="wrong",
            env=wrong_machine_clock(made.folder, timedelta(days=100)),
        )
        made.start_gateway(wrong.grpc)
        await asyncio.sleep(plan.seconds)


async def disk_full_at_start(made: Rig, plan: Plan) -> None:
    """policyd starts on a full disk, with `--log-full drop`; then there is room."""
    with _full_disk(made.folder / "small") as (folder, ballast):
        flags = ("--spool", str(folder / "spool"), "--log-full", "drop")
        server = await asyncio.to_thread(made.start_policyd, *flags)
        made.start_gateway(server.grpc)
        async with _struck(made):
            await made.more(100)
            ballast.unlink()
        await asyncio.to_thread(server.stop)


# Faults of PostgreSQL


async def postgresql_stopped(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """PostgreSQL is stopped; meanwhile each worker is killed."""
    server = made.start_policyd("--workers", "2")
    made.start_gateway(server.grpc)
    async with _struck(made):
        await asyncio.to_thread(postgres.stop)
        for worker in [pid for pid in await _children(server) if _is_worker(pid)]:
            os.kill(worker, signal.SIGKILL)
            await asyncio.sleep(plan.seconds / 2)
            await made.more(20)
        await asyncio.to_thread(postgres.start)


async def postgresql_restarted_policyd(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """policyd is killed and started again while PostgreSQL is stopped."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with _struck(made):
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
    async with _struck(made):
        postgres.freeze()
        await asyncio.sleep(plan.seconds)
        postgres.thaw()


async def postgresql_silent(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """A proxy before PostgreSQL acknowledges, and passes nothing on."""
    with SilentProxy(postgres.socket) as proxy:
        server = made.start_policyd(database_url=_behind(proxy, made))
        made.start_gateway(server.grpc)
        async with _struck(made):
            proxy.be_silent()
            await asyncio.sleep(plan.seconds)
            proxy.speak()


async def replica_vanishes(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """One replica's packets to PostgreSQL are dropped in the middle of what it ships."""
    first = made.start_policyd()
    made.start_gateway(first.grpc)
    with SilentProxy(postgres.socket) as proxy:
        other = made.start_policyd(database_url=_behind(proxy, made), name="other")
        made.start_gateway(other.grpc)
        async with _struck(made):
            proxy.lose()
            proxy.be_silent()
            await asyncio.sleep(plan.seconds)
            proxy.speak()


async def postgresql_full(made: Rig, plan: Plan, postgres: PostgreSQL) -> None:
    """PostgreSQL is out of connections."""
    server = made.start_policyd()
    made.start_gateway(server.grpc)
    async with _struck(made):
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
    async with _struck(made):
        await asyncio.to_thread(postgres.keep)
        await made.more(50)
        await asyncio.to_thread(keys, made.database_url, "set", made.key["id"], "--name", "lost")
        await made.more(50)
        await asyncio.sleep(2)
        await asyncio.to_thread(postgres.go_back)


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


# What the faults are made of

_struck_at: list[float] = []
_recoveries: list[float | None] = []


@asynccontextmanager
async def _struck(made: Rig, *, clients: int = 8) -> AsyncIterator[None]:
    """Load before, during and after a fault, until all is as before."""
    async with made.load(clients):
        await made.more(50)
        _struck_at[:] = [time.monotonic()]
        _recoveries[:] = [None]
        try:
            yield
            _recoveries[:] = [await made.recovered()]
        except TimeoutError:
            sys.stderr.write("  it does not recover\n")
    for one in made.replicas:
        if one.poll() is None:
            await asyncio.to_thread(one.stop)


async def _children(server: Policyd) -> list[int]:
    await asyncio.sleep(0)
    return _family(server.pid)[1:]


def _family(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return [pid]
    return [pid, *(one for word in words for one in _family(int(word)))]


def _is_worker(pid: int, module: str = "policyd.server.worker") -> bool:
    with contextlib.suppress(OSError):
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def _replaced(program: processes.Program, module: str) -> None:
    """SIGHUP, and wait until every worker is another one."""

    def workers() -> set[int]:
        return {pid for pid in _family(program.pid) if _is_worker(pid, module)}

    before = workers()
    program.send(signal.SIGHUP)
    async with asyncio.timeout(120):
        while len(now := workers()) != len(before) or now & before:  # noqa: ASYNC110  # other processes set no event
            await asyncio.sleep(0.05)


def _behind(proxy: SilentProxy, made: Rig) -> str:
    name = sa.make_url(made.database_url).database
    return f"postgresql+psycopg://postgres@{proxy.host}:{proxy.port}/{name}"


def _database(made: Rig) -> Path:
    return Path(made.database_url.removeprefix("sqlite:///"))


def _files(made: Rig) -> list[Path]:
    file = _database(made)
    return [file, *(one for end in ("-wal", "-shm") if (one := Path(f"{file}{end}")).exists())]


def _backup(made: Rig) -> Path:
    target = made.folder / "backup.db"
    with (
        contextlib.closing(sqlite3.connect(_database(made))) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    return target


@contextmanager
def _full_disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A small disk without room, and the file that takes all of it."""
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))
    subprocess.run(mount, check=True)
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    try:
        yield folder, ballast
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)  # noqa: S607  # a system tool


# The program


async def _run(name: str, plan: Plan, folder: Path, background: Background) -> Report:
    fault = ON_SQLITE.get(name)
    if fault is not None:
        with rig(folder, f"sqlite:///{folder}/policyd.db", background) as made:
            await fault(made, plan)
            return _report(name, fault.__doc__ or name, made)
    with PostgreSQL() as server, server.database() as url, rig(folder, url, background) as made:
        await ON_POSTGRESQL[name](made, plan, server)
        if not server.socket.exists():
            server.start()  # The fault ended too early.
        return _report(name, ON_POSTGRESQL[name].__doc__ or name, made)


def _report(name: str, words: str, made: Rig) -> Report:
    recovered = _recoveries[0] if _recoveries else None
    gap = made.longest_gap(_struck_at[0])
    problems = [line for one in made.replicas for line in one.errors if "Traceback" in line]
    if problems:
        sys.stderr.write(f"{name}: {len(problems)} tracebacks\n")
    before, during = made.percentiles(_struck_at[0])
    return Report(words.split("\n")[0], count(made), gap, recovered, before, during)


def as_row(report: Report) -> tuple[str, ...]:
    """A report as a row of the table."""
    counts = report.counts
    statuses = ", ".join(f"{number}: {status}" for status, number in counts.statuses.items())
    recovered = "not" if report.recovered is None else f"{report.recovered:.1f}"
    return (
        report.name,
        str(counts.sent),
        statuses,
        str(counts.rows),
        str(counts.flags),
        *map(str, (counts.unchecked, counts.lost, counts.unlogged, counts.twice)),
        str(counts.sent_twice),
        str(counts.dropped),
        f"{report.longest:.1f}",
        recovered,
        f"{report.before:.0f} / {report.during:.0f}",
    )


HEAD = [
    *("fault", "requests", "answers: status", "rows", "flags", "unchecked upstream"),
    *(
        "flags lost",
        "allowed, not logged",
        "logged twice",
        "sent upstream twice",
        "counted as dropped",
    ),
    *(
        "longest without a decision, s",
        "as before after, s",
        "99 % of decisions before / from then on, ms",
    ),
]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Few and short faults, to try it.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Another checkout with a .venv, in whose servers the faults are caused.",
)
@click.argument("faults", nargs=-1, type=click.Choice([*ON_SQLITE, *ON_POSTGRESQL]))
def main(quick: bool, root: Path | None, faults: tuple[str, ...]) -> None:
    """Cause FAULTS, or all of them, in a deployment under load, and print what they cost."""
    plan = Plan(seconds=5, kills=5, restarts=3, held=300, clients=100) if quick else Plan()
    if root:
        processes.BIN = root.resolve() / ".venv/bin"
    background = Background()
    rows = []
    try:
        for name in faults or [*ON_SQLITE, *ON_POSTGRESQL]:
            sys.stderr.write(f"{name} …\n")
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                try:
                    report = asyncio.run(_run(name, plan, Path(folder) / "rig", background))
                except Exception as problem:  # noqa: BLE001  # The others are of use without it.
                    sys.stderr.write(f"  {name}: {problem!r}\n")
                    rows.append(
                        (name, f"failed: {type(problem).__name__}", *[""] * (len(HEAD) - 2))
                    )
                else:
                    rows.append(as_row(report))
                sys.stderr.write("  " + " | ".join(rows[-1]) + "\n")
    finally:
        background.close()
    click.echo(table("What faults cost", HEAD, rows))


if __name__ == "__main__":
    main()
