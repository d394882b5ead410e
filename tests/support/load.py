"""Load on a whole stack (gateway, policyd, upstream), for tests of faults."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from tests.support.commands import invoke
from tests.support.processes import Policyd
from tests.support.stack import Gateway, Upstream

log = logging.getLogger(__name__)

CLIENTS = 8
PAUSE = 0.01
"""Seconds between a client's requests: what is restarted needs the processors too."""
DECIDED = {200, 422}
WAITS = "30"
"""Seconds that the gateway waits for policyd: more than any machine should take."""
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
        before = self.policyd
        flags = ("--grpc", before.grpc, *flags)
        self.policyd = self.start(Policyd, before.folder, *flags, database_url=before.database_url)


class MakeStack(Protocol):
    """Starts policyd with these flags, and a gateway with this --policy-timeout."""

    def __call__(
        self, *flags: str, policy_timeout: str = WAITS, database_url: str | None = None
    ) -> Stack: ...


MODE = ("--enforce-user-ids",)


def keys(database_url: str, *words: str) -> Any:
    """The output of `policyd keys`."""
    done = invoke("policyd", "keys", *words, "--json", "--database-url", database_url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def until(holds: Callable[..., bool]) -> None:
    """Wait until other processes have made this true."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.005)


# Load


@dataclass(frozen=True)
class Answer:
    """An answer that a client got."""

    trace_id: str
    with_user: bool
    status: int
    retry_after: str | None
    body: bytes


async def ask(
    http: aiohttp.ClientSession, stack: Stack, trace_id: str = "", **fields: object
) -> aiohttp.ClientResponse:
    """Send a chat completion."""
    headers = {"x-usagepanda-api-key": stack.key, "x-usagepanda-trace-id": trace_id}
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields}
    return await http.post(f"{stack.gateway.url}/v1/chat/completions", json=body, headers=headers)


class Load:
    """Clients that send requests again and again, every other one without a user."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._stopping = False
        self.answers: list[Answer] = []
        self.sent = 0

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    async def more(self, number: int, *statuses: int) -> None:
        """Wait for so many more answers, with one of `statuses` if any are named."""
        begun = len(self.answers)
        await until(lambda: self._count(begun, statuses) >= number)

    async def until_without_user_is(self, status: int) -> None:
        """Wait until a request without a user gets this answer."""
        begun = len(self.answers)
        expected = (False, status)
        await until(lambda: expected in {(a.with_user, a.status) for a in self.answers[begun:]})

    def _count(self, begun: int, statuses: tuple[int, ...]) -> int:
        return sum(not statuses or one.status in statuses for one in self.answers[begun:])

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Run the load; every request is answered when this ends."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
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
            await asyncio.sleep(PAUSE)
            with_user = not with_user

    async def _ask(self, http: aiohttp.ClientSession, with_user: bool) -> Answer:
        named = {"user": "alice"} if with_user else {}
        trace_id = f"load-{self.sent}"
        async with await ask(http, self._stack, trace_id, **named) as answer:
            retry_after = answer.headers.get("Retry-After")
            return Answer(trace_id, with_user, answer.status, retry_after, await answer.read())


@asynccontextmanager
async def under_load(stack: Stack) -> AsyncIterator[Load]:
    """Apply load from before a fault until decisions flow again; then check every answer."""
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
    """Check that the answer is a decision, or tells that there is none."""
    if answer.status != 503:
        assert answer.status == (200 if answer.with_user else 422), answer
        return
    assert answer.retry_after in {"1", "2", "3"}  # So that not all clients return at once.
    error = json.loads(answer.body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "server_error"
