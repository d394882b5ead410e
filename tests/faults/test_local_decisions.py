"""A gateway that decides by itself: whatever breaks, every decision that a client got is in
policyd's log once, no request passes unchecked, and an outage of policyd is no outage here until
--max-staleness.
"""

import asyncio
import random
import secrets
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from policyd.decision_log.record import Record, Verdict
from policyd.store import LogFilter, Store
from tests.support.load import DECIDED, MODE, Answer, Load, Stack, ask, keys, under_load
from tests.support.processes import Policyd
from tests.support.requirements import missing
from tests.support.stack import Gateway, Upstream
from tests.support.waiting import until

KILLS = 6
MakeLocal = Callable[..., Stack]


@pytest.fixture
def make_local(tmp_path: Path, upstream: Upstream, start: Callable[..., Any]) -> MakeLocal:
    """Starts policyd, and a gateway that decides by itself, with these flags."""

    def make(*flags: str) -> Stack:
        url = f"sqlite:///{tmp_path}/policyd.db"
        key = keys(url, "create", "test", *MODE, "enforce")["key"]
        token = tmp_path / "local-token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(16))
        policyd = start(Policyd, tmp_path, "--local-token-file", str(token), database_url=url)
        gateway = start(Gateway, policyd.grpc, upstream.url, *local(tmp_path), *flags)
        return Stack(policyd, gateway, upstream, key, start)

    return make


def local(folder: Path) -> tuple[str, ...]:
    return (
        *("--decide", "local", "--spool", str(folder / "gateway-spool")),
        *("--policyd-token-file", str(folder / "local-token")),
    )


def restart_policyd(stack: Stack) -> None:
    stack.restart_policyd("--local-token-file", str(stack.policyd.folder / "local-token"))


def logged(stack: Stack) -> list[Record]:
    """The decisions of the load that policyd has."""
    with closing(Store(stack.policyd.database_url)) as store:
        found: list[Record] = []
        while page := store.log.page(LogFilter(), after=found[-1].id if found else "", limit=5000):
            found += page
    assert len({one.id for one in found}) == len(found)
    return [one for one in found if one.trace_id.startswith("load-")]


def check_logged(stack: Stack, load: Load, unheard: int = 0) -> None:
    """Sent = answered = logged, but for decisions whose answer was lost with a process."""
    assert len(load.answers) == load.sent
    records = logged(stack)
    for status, verdict in ((422, Verdict.DENIED), (200, Verdict.ALLOWED)):
        answers = Counter(one.trace_id for one in load.answers if one.status == status)
        entries = Counter(one.trace_id for one in records if one.verdict is verdict)
        assert not answers - entries
    assert len(records) - sum(load.statuses()[one] for one in DECIDED) in range(unheard + 1)
    unchecked = [one for one in stack.upstream.received if b'"user": "alice"' not in one.body]
    assert not unchecked


class CutLoad(Load):
    """A load on a gateway that is killed: a request that is cut counts as status 0."""

    async def _ask(self, http: aiohttp.ClientSession, with_user: bool) -> Answer:
        trace = f"load-{self.sent}"
        try:
            return await super()._ask(http, with_user)
        except aiohttp.ClientError:
            await asyncio.sleep(0.05)
            return Answer(trace, with_user, 0, None, b"")


@pytest.mark.timeout(300)
async def test_the_gateway_is_killed_again_and_again(make_local: MakeLocal) -> None:
    """Every 422 and 200 that a client got before a kill -9 is in policyd's log once after it."""
    stack = make_local()
    place = stack.gateway.url.removeprefix("http://")
    random.seed(1)
    load = CutLoad(stack)
    async with load.running():
        for _ in range(KILLS):
            await load.more(60, *DECIDED)
            await asyncio.sleep(random.random() * 0.3)  # keeps no secret
            await asyncio.to_thread(stack.gateway.stop, signal.SIGKILL)
            flags = ("--listen", place, *local(stack.policyd.folder))
            stack.gateway = await asyncio.to_thread(
                stack.start, Gateway, stack.policyd.grpc, stack.upstream.url, *flags
            )
        await load.more(60, *DECIDED)
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load, unheard=KILLS * 8)
    assert not list((stack.policyd.folder / "gateway-spool").glob("*.jsonl"))


async def test_policyd_is_killed_and_restarted(make_local: MakeLocal) -> None:
    """The gateway goes on without it: no request gets 503, and all is logged."""
    stack = make_local()
    async with under_load(stack) as load:
        await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        await load.more(200)
        await asyncio.to_thread(restart_policyd, stack)
    assert load.statuses().keys() == DECIDED
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)


async def test_policyd_is_stopped(make_local: MakeLocal) -> None:
    """A policyd that hangs: decisions go on until --max-staleness, then requests get 503, and
    decisions again once it goes on."""
    stack = make_local("--max-staleness", "4")
    async with under_load(stack) as load:
        stack.policyd.send(signal.SIGSTOP)
        await load.more(20, *DECIDED)
        await load.more(20, 503)
        late = len(load.answers)
        await load.more(40)
        assert {one.status for one in load.answers[late:]} == {503}
        stack.policyd.send(signal.SIGCONT)
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)


async def test_a_key_is_revoked_while_policyd_is_away(make_local: MakeLocal) -> None:
    """Requests with the key pass until the gateway follows policyd again, and not from then on."""
    stack = make_local()
    async with aiohttp.ClientSession() as http:
        assert await status(http, stack) == 200
        await asyncio.to_thread(stack.policyd.stop)
        [key] = keys(stack.policyd.database_url, "list")
        keys(stack.policyd.database_url, "revoke", key["id"])
        assert await status(http, stack) == 200
        await asyncio.to_thread(restart_policyd, stack)
        async with asyncio.timeout(60):
            while (answer := await status(http, stack)) == 200:
                pass
    assert answer == 403


async def status(http: aiohttp.ClientSession, stack: Stack) -> int:
    """The status of the answer to a request with a user."""
    async with await ask(http, stack, user="alice") as answer:
        return answer.status


async def test_the_spool_is_full(make_local: MakeLocal) -> None:
    """Requests get 503 where no more decisions can wait for policyd, and decisions again once it
    has taken them: each that was answered is logged."""
    stack = make_local("--spool-limit", str(2**16))
    async with under_load(stack) as load:
        await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        await load.more(20, 503)
        await asyncio.to_thread(restart_policyd, stack)
        await load.more(60, *DECIDED)
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The gateway's spool is on a disk that is soon full."""
    folder = tmp_path / "gateway-spool"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={2**17},mode=700", "tmpfs", str(folder))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        missing("only root can make a disk that is full soon")
    yield folder
    # The processes of a killed gateway end a moment after it.
    subprocess.run(("umount", "--lazy", str(folder)), check=True)


@pytest.mark.usefixtures("small_disk")
async def test_the_disk_is_full_and_deny(make_local: MakeLocal) -> None:
    """With --log-full deny requests get 503 while the disk is full, and the gateway says why; each
    that was answered is logged once there is room again."""
    stack = make_local("--log-full", "deny")
    async with under_load(stack) as load:
        await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        await load.more(20, 503)
        await asyncio.to_thread(restart_policyd, stack)
        await load.more(60, *DECIDED)
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)
    assert lost(stack) == 0
    assert any("No space left on device" in line for line in stack.gateway.errors)


@pytest.mark.usefixtures("small_disk")
async def test_the_disk_is_full_and_drop(make_local: MakeLocal) -> None:
    """With --log-full drop requests get their decisions while the disk is full, and policyd counts
    those that are lost."""
    stack = make_local("--log-full", "drop")
    async with under_load(stack) as load:
        await asyncio.to_thread(stack.policyd.stop, signal.SIGKILL)
        await until(lambda: any("dropped and counted" in one for one in stack.gateway.errors))
        await load.more(50, *DECIDED)
        await asyncio.to_thread(restart_policyd, stack)
    assert load.statuses().keys() == DECIDED
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    assert lost(stack) >= 50
    assert len(logged(stack)) + lost(stack) == load.sent


def lost(stack: Stack) -> int:
    """The decisions that policyd counts as answered and not logged."""
    with closing(Store(stack.policyd.database_url)) as store:
        return store.log.status().lost


async def test_workers_are_replaced(make_local: MakeLocal) -> None:
    """At SIGHUP two generations of workers share the spool: every request gets its decision, and
    each is logged once."""
    stack = make_local("--workers", "2")
    async with under_load(stack) as load:
        stack.gateway.send(signal.SIGHUP)
        await until(lambda: any("replaced" in line for line in stack.gateway.errors))
        await load.more(40, *DECIDED)
    assert load.statuses().keys() == DECIDED
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)


def test_a_spool_is_one_gateways(make_local: MakeLocal, tmp_path: Path, upstream: Upstream) -> None:
    """A second gateway on the spool does not start, and says why."""
    stack = make_local()
    with pytest.raises(AssertionError, match="in use by another policyd-gateway"):
        Gateway(stack.policyd.grpc, upstream.url, *local(tmp_path))
