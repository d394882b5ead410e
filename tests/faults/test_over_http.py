"""A gateway that asks over HTTP, under load, while policyd is restarted, replaced or stands still:
every request gets its decision, and the log has each of them once."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.test_log_faults import logged
from tests.faults.test_rolling import children, roll
from tests.support.load import DECIDED, WAITS, Load, MakeStack, Stack, under_load
from tests.support.processes import Policyd
from tests.support.stack import Gateway

HTTP = ("--http", "127.0.0.1:0")


def over_http(stack: Stack, *others: Policyd, timeout: str = WAITS) -> None:
    """Put a gateway that asks over HTTP in the place of the stack's."""
    asked = ",".join(f"http://{one.http}" for one in (stack.policyd, *others))
    given = (asked, stack.upstream.url, "--policy-timeout", timeout)
    stack.gateway = stack.start(Gateway, *given)


async def check(stack: Stack, load: Load) -> None:
    """Each request has its decision, and the log has it once."""
    assert set(load.statuses()) == DECIDED
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    assert await asyncio.to_thread(stack.policyd.stop) == 0
    found = Counter(one.trace_id for one in logged(stack))
    assert set(found.values()) == {1}
    assert len(found) == load.sent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart(make_stack: MakeStack, number: signal.Signals) -> None:
    """policyd ends, in good order or not, and another one takes its ports."""
    stack = make_stack(*HTTP)
    over_http(stack)
    before = stack.policyd
    async with under_load(stack) as load:
        await asyncio.to_thread(before.stop, number)
        stack.restart_policyd("--http", before.http)
        await load.more(60, *DECIDED)
    await check(stack, load)


async def test_rolling(make_stack: MakeStack) -> None:
    """All workers are replaced, which end the connections that they have."""
    stack = make_stack(*HTTP, "--workers", "2")
    over_http(stack)
    async with under_load(stack) as load:
        await roll(stack.policyd)
        await load.more(60, *DECIDED)
    await check(stack, load)


async def test_one_worker_stands_still(make_stack: MakeStack) -> None:
    """One of two workers at the same address stands still: its calls are made by the other."""
    stack = make_stack(*HTTP, "--workers", "2")
    over_http(stack, timeout="4")
    async with under_load(stack) as load:
        one = min(children(stack.policyd))
        os.kill(one, signal.SIGSTOP)
        try:
            await load.more(100, *DECIDED)
        finally:
            os.kill(one, signal.SIGCONT)
    await check(stack, load)


async def test_one_policyd_stands_still(make_stack: MakeStack, tmp_path: Path) -> None:
    """One of two policyds stands still: the other answers, and later both do."""
    stack = make_stack(*HTTP)
    (tmp_path / "other").mkdir()
    url = stack.policyd.database_url
    other = stack.start(Policyd, tmp_path / "other", *HTTP, database_url=url)
    over_http(stack, other, timeout="4")
    async with under_load(stack) as load:
        for one in (other, stack.policyd):
            one.send(signal.SIGSTOP)
            await load.more(60, *DECIDED)
            one.send(signal.SIGCONT)
            await load.more(20, *DECIDED)
    assert await asyncio.to_thread(other.stop) == 0
    await check(stack, load)
