"""Large bodies at the gateway: read by other processes, and in no other request's way."""

import asyncio
import os
import signal
from pathlib import Path

from gateway.server import Server
from tests.gateway.conftest import IN_SESSION, Serving
from tests.gateway.test_bodies import LARGE, LARGE_WITHOUT_USER
from tests.support.raw_http import CHAT_WITH_USER, Demo, post

pytestmark = IN_SESSION


async def _reader(server: Server, key: str) -> int:
    """The process ID of the gateway's one reader, which starts with its first large body."""
    assert (await post(server.url, key, LARGE)).status == 200
    (process,) = server.gateway.readers
    return process


async def test_small_requests_go_first(serving: Serving, demo: Demo, enforcing: str) -> None:
    """Small requests, and large ones that another reader takes, are answered while a large body is
    read, however long that takes."""
    async with serving(demo.url) as server:
        process = await _reader(server, enforcing)
        os.kill(process, signal.SIGSTOP)
        reading = asyncio.create_task(post(server.url, enforcing, LARGE))
        while not server.gateway.readers[process]:
            await asyncio.sleep(0)
        assert (await post(server.url, enforcing, CHAT_WITH_USER)).status == 200
        assert (await post(server.url, enforcing, LARGE_WITHOUT_USER)).status == 422
        assert not reading.done()
        os.kill(process, signal.SIGCONT)
        assert (await reading).status == 200


async def test_a_reader_that_ends(serving: Serving, demo: Demo, enforcing: str) -> None:
    """A body whose reader is killed gets 503, and never goes upstream unread; the next one is
    read."""
    async with serving(demo.url) as server:
        process = await _reader(server, enforcing)
        os.kill(process, signal.SIGSTOP)
        sent = len(demo.app.record)
        reading = asyncio.create_task(post(server.url, enforcing, LARGE))
        while not server.gateway.readers[process]:
            await asyncio.sleep(0)
        os.kill(process, signal.SIGKILL)
        failed = await reading
        assert failed.status == 503
        assert failed.all("retry-after")
        assert len(demo.app.record) == sent
        assert (await post(server.url, enforcing, LARGE)).status == 200
        assert server.gateway.held == 0


async def test_readers_end_with_the_gateway(serving: Serving, demo: Demo, enforcing: str) -> None:
    """A gateway that stops leaves no process behind."""
    async with serving(demo.url) as server:
        process = await _reader(server, enforcing)
    async with asyncio.timeout(30):
        while Path(f"/proc/{process}").exists():  # noqa: ASYNC240  # nothing tells of it
            await asyncio.sleep(0.01)
