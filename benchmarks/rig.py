"""A whole deployment under load: replicas of policyd, gateways, an upstream and a database.

Everything is a real process on the loopback, of this version or of another checkout. What each
client got, what went upstream and what the log has is compared request by request.
"""

import asyncio
import contextlib
import itertools
import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import grpc
import psycopg
import sqlalchemy as sa

from policyd.v1.policy_pb2 import EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support import processes
from tests.support.load import MODE, keys
from tests.support.processes import Policyd
from tests.support.stack import Background, Gateway, Upstream

PATIENCE = 120.0
"""Seconds after which a deployment counts as not recovered."""
_DENIED = 3
"""A denial in the log's column `verdict`."""
_DECIDED = (200, 422)
_PAUSE = 0.01
"""Seconds between two requests of a client."""


class Answer(NamedTuple):
    """An answer to a client, and when it came."""

    trace_id: str
    with_user: bool
    status: int
    """0: the connection broke."""
    at: float
    took: float


@dataclass
class Rig:
    """The running programs, and the answers that clients got."""

    folder: Path
    database_url: str
    upstream: Upstream
    running: ExitStack
    flags: tuple[str, ...] = ()
    replicas: list[Policyd] = field(default_factory=list)
    gateways: list[Gateway] = field(default_factory=list)
    key: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    sent: int = 0

    def start_policyd(self, *flags: str, at: str = "", name: str = "one", **more: Any) -> Policyd:
        """One more replica, with a spool of its own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        where = ("--grpc", at) if at else ()
        url = more.pop("database_url", self.database_url)
        server = Policyd(folder, *self.flags, *where, *flags, database_url=url, **more)
        self.running.callback(_end, server)
        self.replicas.append(server)
        return server

    def start_gateway(self, policyd: str, *flags: str, **more: Any) -> Gateway:
        """One more gateway, which asks `policyd`."""
        gateway = Gateway(policyd, self.upstream.url, *flags, **more)
        self.running.callback(_end, gateway)
        self.gateways.append(gateway)
        return gateway

    def statuses(self) -> Counter[int]:
        """Number of requests that were answered with this status."""
        return Counter(answer.status for answer in self.answers)

    async def more(self, number: int, *statuses: int) -> None:
        """Wait for so many more answers with one of these statuses, decisions if none is named."""
        begun, wanted = len(self.answers), statuses or _DECIDED
        async with asyncio.timeout(PATIENCE):
            while sum(one.status in wanted for one in self.answers[begun:]) < number:  # noqa: ASYNC110  # other processes set no event
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def load(self, clients: int = 8, *, pause: float = _PAUSE) -> AsyncIterator[None]:
        """Clients that send requests to the gateways in turn, every other one without a user."""
        stopping = asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            tasks = [
                asyncio.create_task(self._ask_on(http, number, stopping, pause))
                for number in range(clients)
            ]
            try:
                await self.more(2 * clients)
                yield
            finally:
                stopping.set()
                await asyncio.gather(*tasks)

    async def _ask_on(
        self, http: aiohttp.ClientSession, number: int, stopping: asyncio.Event, pause: float
    ) -> None:
        with_user = number % 2 == 0
        while not stopping.is_set():
            self.sent += 1
            trace_id = f"load-{self.sent}"
            begun = time.monotonic()
            status = await self._ask(http, trace_id, with_user)
            now = time.monotonic()
            self.answers.append(Answer(trace_id, with_user, status, now, now - begun))
            with_user = not with_user
            await asyncio.sleep(pause)

    async def _ask(self, http: aiohttp.ClientSession, trace_id: str, with_user: bool) -> int:
        gateway = self.gateways[self.sent % len(self.gateways)]
        headers = {"x-usagepanda-api-key": self.key["key"], "x-usagepanda-trace-id": trace_id}
        body = {"model": "m", "messages": [{"role": "user", "content": trace_id}]}
        named = {"user": "alice"} if with_user else {}
        url = f"{gateway.url}/v1/chat/completions"
        try:
            async with http.post(url, json=body | named, headers=headers) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0

    def longest_gap(self, since: float) -> float:
        """The longest time without any decision from `since` on, in seconds."""
        moments = [since, *(one.at for one in self.answers if one.status in _DECIDED)]
        moments = [moment for moment in moments if moment >= since]
        return max((b - a for a, b in itertools.pairwise(moments)), default=0.0)

    def percentiles(self, since: float) -> tuple[float, float]:
        """The 99th percentile of the time of a decision, in ms, before `since` and from then on."""
        found = []
        for is_after in (False, True):
            took = sorted(
                one.took
                for one in self.answers
                if one.status in _DECIDED and (one.at >= since) is is_after
            )
            found.append(1000 * took[min(int(0.99 * len(took)), len(took) - 1)] if took else 0.0)
        return found[0], found[1]

    async def recovered(self) -> float:
        """Seconds until decisions flow, the log arrives and settings are followed again."""
        begun = time.monotonic()
        await self.more(20)
        newest = self.answers[-1].trace_id
        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(self._has, newest):  # noqa: ASYNC110  # see more()
                await asyncio.sleep(0.1)
            await asyncio.to_thread(self._follow_settings)
        return time.monotonic() - begun

    def _has(self, trace_id: str) -> bool:
        try:
            return any(row[1] == trace_id for row in self.rows())
        except (sqlite3.Error, psycopg.Error):
            return False

    def _follow_settings(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                changed = keys(self.database_url, "set", self.key["id"], "--name", "changed")
                for one in self.replicas:
                    if one.poll() is None:
                        reach(one.grpc, changed["revision"])
            except (AssertionError, grpc.RpcError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def rows(self) -> list[tuple[str, str, int]]:
        """ID, trace and verdict of the load's decisions in the log."""
        query = "SELECT id, trace_id, verdict FROM decisions WHERE trace_id LIKE 'load-%'"
        return [(row[0], row[1], row[2]) for row in self.query(query)]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a query of the database."""
        url = sa.make_url(self.database_url)
        if url.get_backend_name() == "sqlite":
            with contextlib.closing(sqlite3.connect(str(url.database), timeout=10)) as connection:
                return connection.execute(statement).fetchall()
        with self.connect() as postgres:
            return postgres.execute(statement.encode()).fetchall()

    def connect(self) -> psycopg.Connection[Any]:
        """A connection of its own to PostgreSQL."""
        url = sa.make_url(self.database_url)
        host = str(url.query.get("host", url.host))
        return psycopg.connect(host=host, user=url.username, dbname=url.database, connect_timeout=5)


def reach(place: str, revision: int) -> None:
    """Wait until `revision` is in force at one policyd."""
    with grpc.insecure_channel(place) as channel:
        request = EvaluateRequest(has_user=True, min_revision=revision)
        PolicyServiceStub(channel).Evaluate(request, timeout=10)


def _end(program: processes.Program) -> None:
    if program.poll() is None:
        program.send(signal.SIGCONT)
        program.stop(signal.SIGKILL)


@contextlib.contextmanager
def rig(folder: Path, database_url: str, background: Background, *flags: str) -> Iterator[Rig]:
    """A key and an upstream; replicas and gateways are started by the fault."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as running:
        upstream = running.enter_context(Upstream(background))
        made = Rig(folder, database_url, upstream, running, flags)
        made.key = keys(database_url, "create", "test", *MODE, "enforce")
        yield made


class Counts(NamedTuple):
    """The effects of a fault."""

    sent: int
    statuses: dict[int, int]
    rows: int
    flags: int
    unchecked: int
    """Requests that went upstream without a user."""
    lost: int
    """Answers 422 whose flag is missing in the log."""
    unlogged: int
    """Answers 200 whose decision is missing in the log."""
    twice: int
    """Requests that are in the log more than once."""
    sent_twice: int
    """Requests that went upstream more than once."""
    dropped: int
    """Decisions that policyd has counted as answered and not logged."""


def count(made: Rig) -> Counts:
    """Compare the clients' answers with what went upstream and what the log has."""
    rows = made.rows()
    traces = Counter(trace for _, trace, _ in rows)
    denied = {trace for _, trace, verdict in rows if verdict == _DENIED}
    bodies = [json.loads(one.body) for one in made.upstream.received]
    contents = Counter(body["messages"][0]["content"] for body in bodies)
    refused = {one.trace_id for one in made.answers if one.status == 422}
    allowed = {one.trace_id for one in made.answers if one.status == 200}
    return Counts(
        sent=made.sent,
        statuses=dict(sorted(made.statuses().items())),
        rows=len(rows),
        flags=len(denied),
        unchecked=sum("user" not in body for body in bodies),
        lost=len(refused - denied),
        unlogged=len(allowed - traces.keys()),
        twice=sum(number > 1 for number in traces.values()),
        sent_twice=sum(number > 1 for number in contents.values()),
        dropped=sum(row[0] for row in made.query("SELECT decisions FROM log_lost")),
    )


Fault = Callable[[Rig], Any]
