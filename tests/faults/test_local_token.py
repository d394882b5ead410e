"""A new token of gateways that decide by themselves: first policyd takes it, then the gateway. No
request waits for it, and no decision is lost.

Every program is a real process.
"""

import asyncio
import secrets
import signal

import aiohttp
import pytest

from tests.faults.test_local_decisions import MakeLocal, check_logged, make_local, status
from tests.faults.test_rolling import roll, told
from tests.support.load import DECIDED, Stack, keys, under_load
from tests.support.waiting import until

OTHER = "it was shown another token than the one in its --local-token-file"

__all__ = ["make_local"]  # A fixture.


def write_token(stack: Stack) -> None:
    """Write another token into the file that both servers read at SIGHUP."""
    (stack.policyd.folder / "local-token").write_text(secrets.token_hex(16))


def lines(stack: Stack, beginning: str) -> int:
    """The lines of the gateway's log with this, which name the token as the cause."""
    return sum(beginning in line and OTHER in line for line in stack.gateway.errors)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_new_token(make_local: MakeLocal, workers: str) -> None:
    """Once policyd has it, the gateway's log says that its own is another one, and it goes on; with
    the new one it follows again, and hands over all that it decided meanwhile."""
    stack = make_local("--workers", workers)
    async with under_load(stack) as load:
        write_token(stack)
        await roll(stack.policyd)
        await until(lambda: lines(stack, "settings stay at revision") > 0)
        await until(lambda: lines(stack, "decisions stay in the spool") > 0)
        await load.more(60, *DECIDED)
        await roll(stack.gateway)
        await load.more(60, *DECIDED)
    assert load.statuses().keys() == DECIDED
    [key] = keys(stack.policyd.database_url, "list")
    keys(stack.policyd.database_url, "revoke", key["id"])
    async with aiohttp.ClientSession() as http, asyncio.timeout(60):
        while (answer := await status(http, stack)) == 200:
            pass
    assert answer == 403
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)
    assert not list((stack.policyd.folder / "gateway-spool").glob("*.jsonl"))


async def test_the_gateway_keeps_the_old_one(make_local: MakeLocal) -> None:
    """A gateway with the old token decides until --max-staleness, and then answers 503; with the
    new token it decides again, without a restart."""
    stack = make_local("--max-staleness", "4")
    async with under_load(stack) as load:
        write_token(stack)
        await roll(stack.policyd)
        await load.more(20, 503)
        late = len(load.answers)
        await load.more(40)
        assert {one.status for one in load.answers[late:]} == {503}
        await roll(stack.gateway)
    assert lines(stack, "settings stay at revision") > 0
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)


async def test_the_gateway_is_first(make_local: MakeLocal) -> None:
    """A gateway that takes the new token before policyd does keeps its workers, says why, and takes
    it once policyd has."""
    stack = make_local()
    async with under_load(stack) as load:
        write_token(stack)
        stack.gateway.send(signal.SIGHUP)
        await until(lambda: told(stack.gateway, "no more workers are replaced") > 0)
        assert lines(stack, "settings stay at revision 0") > 0
        await load.more(40, *DECIDED)
        await roll(stack.policyd)
        await roll(stack.gateway)
        await load.more(40, *DECIDED)
    assert load.statuses().keys() == DECIDED
    assert await asyncio.to_thread(stack.gateway.stop) == 0
    check_logged(stack, load)
