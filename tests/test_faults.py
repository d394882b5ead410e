"""Killed, stopped and restarted under load, policyd and its gateway let nothing through unchecked.

Every program is a real process. `pytest --log-level=info -rP` shows the counts and times.
"""

import asyncio
import contextlib
import json
import logging
import re
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import grpc
import pytest

from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.processes import Policyd, Program, run
from tests.stack import Background, Gateway, Upstream

log = logging.getLogger(__name__)

CLIENTS = 8
DECIDED = {200, 422}
PATIENCE = 60
"""Seconds after which a test gives up: far more than any machine should take."""


@dataclass
class Stack:
    """policyd, a gateway and an upstream."""

    policyd: Policyd
    gateway: Gateway
    upstream: Upstream
    key: str
    start: Callable[..., Any]

    def restart_policyd(self, *flags: str) -> None:
        """Start one more on the same database and port."""
        flags = ("--grpc", self.policyd.grpc, *flags)
        self.policyd = self.start(Policyd, self.policyd.folder, *flags)


class MakeStack(Protocol):
    """Starts policyd with these flags, and the rest."""

    def __call__(self, *flags: str) -> Stack: ...


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    loop = Background()
    yield loop
    loop.close()


@pytest.fixture
def upstream(background: Background) -> Iterator[Upstream]:
    with Upstream(background) as running:
        yield running


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts programs, which end with the test in whatever state it leaves them."""
    programs: list[Program] = []

    def begin(program: type[Program], *arguments: Any) -> Program:
        programs.append(program(*arguments))
        return programs[-1]

    yield begin
    for program in reversed(programs):
        program.send(signal.SIGCONT)
        program.stop(signal.SIGKILL)


@pytest.fixture
def make_stack(tmp_path: Path, upstream: Upstream, start: Callable[..., Any]) -> MakeStack:
    def make(*flags: str) -> Stack:
        policyd = start(Policyd, tmp_path, *flags)
        gateway = start(Gateway, policyd.grpc, upstream.url, "--policy-timeout", "0.5")
        return Stack(policyd, gateway, upstream, policyd.create_key("enforce"), start)

    return make


# Load


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    with_user: bool
    status: int
    retry_after: str | None
    body: bytes


class Load:
    """Clients that ask without a pause, every other time without a user."""

    def __init__(self, stack: Stack) -> None:
        self._url = f"{stack.gateway.url}/v1/chat/completions"
        self._headers = {"x-usagepanda-api-key": stack.key}
        self._stopping = False
        self.answers: list[Answer] = []
        self.sent = 0

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    async def more(self, number: int, *statuses: int) -> None:
        """Wait until so many answers more have come, with one of `statuses` if any are named."""
        begun = len(self.answers)
        async with asyncio.timeout(PATIENCE):
            while self._count(begun, statuses) < number:
                await asyncio.sleep(0.005)

    def _count(self, begun: int, statuses: tuple[int, ...]) -> int:
        return sum(not statuses or one.status in statuses for one in self.answers[begun:])

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Every request is answered when this ends."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(headers=self._headers, timeout=timeout) as http,
            asyncio.TaskGroup() as clients,
        ):
            for number in range(CLIENTS):
                clients.create_task(self._ask_on(http, with_user=number % 2 == 0))
            yield self
            self._stopping = True

    async def _ask_on(self, http: aiohttp.ClientSession, with_user: bool) -> None:
        while not self._stopping:
            self.sent += 1
            self.answers.append(await self._ask(http, with_user))
            with_user = not with_user

    async def _ask(self, http: aiohttp.ClientSession, with_user: bool) -> Answer:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        if with_user:
            body["user"] = "alice"
        async with http.post(self._url, json=body) as answer:
            retry_after = answer.headers.get("Retry-After")
            return Answer(with_user, answer.status, retry_after, await answer.read())


@asynccontextmanager
async def under_load(stack: Stack) -> AsyncIterator[Load]:
    """Load from before a fault until decisions flow again; then everything is looked at."""
    load = Load(stack)
    async with load.running():
        await load.more(60, *DECIDED)
        yield load
        await load.more(60, *DECIDED)
    log.info("%d requests: %s", load.sent, dict(sorted(load.statuses().items())))
    assert len(load.answers) == load.sent
    for answer in load.answers:
        check(answer)
    unchecked = [one for one in stack.upstream.received if b'"user": "alice"' not in one.body]
    assert not unchecked
    assert len(stack.upstream.received) == load.statuses()[200]


def check(answer: Answer) -> None:
    """It is a decision, or says that there is none."""
    if answer.status != 503:
        assert answer.status == (200 if answer.with_user else 422), answer
        return
    assert answer.retry_after == "1"
    error = json.loads(answer.body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "server_error"


# policyd goes away


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_policyd_ends_and_is_restarted(
    make_stack: MakeStack, number: signal.Signals
) -> None:
    """Without policyd there is 503 and nothing goes upstream; with it back, decisions flow."""
    stack = make_stack()
    async with under_load(stack) as load:
        status = await asyncio.to_thread(stack.policyd.stop, number)
        await load.more(40, 503)
        await asyncio.to_thread(stack.restart_policyd)
    assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)


async def test_policyd_is_stopped_and_continued(make_stack: MakeStack) -> None:
    """A policyd that does not answer is as none: 503 in time, and nothing goes upstream."""
    stack = make_stack()
    async with under_load(stack) as load:
        stack.policyd.send(signal.SIGSTOP)
        await load.more(2 * CLIENTS, 503)
        stack.policyd.send(signal.SIGCONT)


async def test_policyd_is_stopped_and_replaced(make_stack: MakeStack) -> None:
    """One that hangs is killed and another started on its port, while the load goes on."""
    stack = make_stack()
    async with under_load(stack) as load:
        stack.policyd.send(signal.SIGSTOP)
        await load.more(CLIENTS, 503)
        await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        await asyncio.to_thread(stack.restart_policyd)


# Workers


def workers(policyd: Policyd) -> set[int]:
    """The processes that a supervisor has started and that live."""
    children = Path(f"/proc/{policyd.pid}/task/{policyd.pid}/children").read_text().split()
    return {int(pid) for pid in children if is_running(int(pid))}


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # Ended; whether it has been reaped is its parent's matter.


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.02)


async def test_workers_are_killed_one_by_one(make_stack: MakeStack) -> None:
    """Each is started again, and the other answers meanwhile."""
    stack = make_stack("--workers", "2")
    async with under_load(stack) as load:
        for victim in workers(stack.policyd):
            before = workers(stack.policyd)
            kill(victim)
            await until(lambda gone={victim}: len(workers(stack.policyd) - gone) == len(before))
            await load.more(40, *DECIDED)
    assert sum("is started again" in line for line in stack.policyd.errors) == 2


async def test_the_supervisor_is_killed(make_stack: MakeStack) -> None:
    """Its workers end with it: none is left to answer by settings that nobody keeps."""
    stack = make_stack("--workers", "2")
    async with under_load(stack) as load:
        orphans = workers(stack.policyd)
        assert len(orphans) == 2
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
    make_stack: MakeStack, start: Callable[..., Any], tmp_path: Path, count: str
) -> None:
    """A question that is being answered when it comes is answered; then policyd exits with 0."""
    policyd = start(Policyd, tmp_path, "--workers", count)
    key = json.loads(keys(policyd, "create", "test"))
    policyd.reach(key["revision"])
    waiting = EvaluateRequest(key=key["key"], has_user=True, min_revision=key["revision"] + 1)
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        answer = PolicyServiceStub(channel).Evaluate(waiting, timeout=PATIENCE)
        await answer.wait_for_connection()
        await asyncio.sleep(0.2)
        policyd.send(signal.SIGTERM)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(keys, policyd, "set", key["id"], "--name", "changed")
        assert (await answer).decision == DECISION_ALLOW
    assert await asyncio.to_thread(policyd.wait) == 0
    assert not any("Traceback" in line for line in policyd.errors)
