"""The decision log of a real policyd shows the outcome of each request that a gateway forwarded."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from gateway.server import Server
from gateway.settings import Settings
from policyd.client import PolicyClient
from policyd.command.address import Address
from policyd.v1.admin_pb2 import ListDecisionsRequest, LoggedDecision
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from policyd.v1.policy_pb2 import ENDING_COMPLETE, EvaluateRequest, Outcome
from tests.support.processes import Policyd
from tests.support.raw_http import Demo, post, serving_demo
from tests.support.reports import PATIENCE, chat, check_times, load, tokens
from tests.support.waiting import until


@pytest_asyncio.fixture
async def demo() -> AsyncIterator[Demo]:
    async with serving_demo() as running:
        yield running


class Log:
    """The decision log of a `policyd serve`, as its administrator reads it."""

    def __init__(self, policyd: Policyd) -> None:
        token = (policyd.folder / "admin-token").read_text().strip()
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channel = grpc.aio.insecure_channel(policyd.admin)
        self._stub = AdminServiceStub(self._channel)

    async def decisions(self) -> list[LoggedDecision]:
        """All decisions, newest first."""
        request = ListDecisionsRequest(page_size=1000)
        answer = await self._stub.ListDecisions(request, metadata=self._metadata, timeout=30)
        assert not answer.next_page_token
        return list(answer.decisions)

    async def with_outcomes(self, number: int) -> list[LoggedDecision]:
        """The decisions whose outcome is known, once there are so many."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = [one for one in await self.decisions() if one.HasField("outcome")]
                if len(found) >= number:
                    return found
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self._channel.close()


@asynccontextmanager
async def serving_policyd(folder: Path, *flags: str) -> AsyncIterator[tuple[Policyd, Log]]:
    """Run `policyd serve`, which is killed at the end."""
    program = await asyncio.to_thread(Policyd, folder, *flags)
    log = Log(program)
    try:
        yield program, log
    finally:
        await log.close()
        await asyncio.to_thread(program.stop, signal.SIGKILL)


@pytest.mark.slow
async def test_the_log_shows_it(tmp_path: Path, demo: Demo) -> None:
    """The log shows the model, tokens, times and cost of a stream."""
    async with serving_policyd(tmp_path) as (policyd, log):
        key = await asyncio.to_thread(policyd.create_key, "enforce")
        settings = Settings(
            listen=Address("127.0.0.1", 0),
            upstream=demo.url,
            policyd=policyd.grpc,
            policy_timeout=30.0,
        )
        async with Server(settings) as server:
            body = chat(stream=True, stream_options={"include_usage": True})
            response = await post(server.url, key, body)
            (decision,) = await log.with_outcomes(1)
    assert response.status == 200
    assert decision.user == "u-1"
    outcome = decision.outcome
    assert (outcome.ending, outcome.http_status) == (ENDING_COMPLETE, 200)
    assert outcome.openai_id.startswith("chatcmpl-")
    assert (outcome.model, outcome.organization) == ("gpt-4o-mini", "policyd-demo")
    given_tokens, generated, _ = tokens(outcome)
    assert given_tokens == 3
    assert generated
    # A million tokens of gpt-4o-mini cost 0.15 dollars given and 0.60 generated.
    assert decision.cost_micro_usd == pytest.approx(0.15 * given_tokens + 0.6 * generated)
    check_times(outcome)


@pytest.mark.slow
async def test_what_was_written_to_the_cache(tmp_path: Path) -> None:
    """Tokens that were written to the cache are logged, and are part of the cost."""
    async with serving_policyd(tmp_path) as (policyd, log):
        key = await asyncio.to_thread(policyd.create_key)
        async with PolicyClient(policyd.grpc, timeout=30) as client:
            for written in (None, 400):
                answer = await client.evaluate(EvaluateRequest(key=key, has_user=True))
                outcome = Outcome(decision_id=answer.decision_id, model="gpt-5.6-sol")
                outcome.input_tokens = 1000
                if written is not None:
                    outcome.cache_write_tokens = written
                client.report(outcome)
        with_cache, without = await log.with_outcomes(2)
    assert with_cache.outcome.cache_write_tokens == 400
    assert not without.outcome.HasField("cache_write_tokens")
    assert with_cache.cost_micro_usd == pytest.approx(1.1 * without.cost_micro_usd)


@pytest.mark.slow
async def test_policyd_is_killed(tmp_path: Path, demo: Demo) -> None:
    """Under load, the log has in the end the outcome of every forwarded request."""
    async with AsyncExitStack() as at_last:
        async with serving_policyd(tmp_path) as (policyd, _):
            key = await asyncio.to_thread(policyd.create_key, "enforce")
        address = policyd.grpc
        settings = Settings(
            listen=Address("127.0.0.1", 0), upstream=demo.url, policyd=address, policy_timeout=0.5
        )
        async with (
            Server(settings) as server,
            load(server.url, key) as statuses,
        ):
            for number in (1, 2):
                async with serving_policyd(tmp_path, "--grpc", address):
                    await until(lambda wanted=30 * number: statuses.count(200) >= wanted)
                refused = statuses.count(503)
                await until(lambda before=refused: statuses.count(503) > before)
            running = serving_policyd(tmp_path, "--grpc", address)
            _, log = await at_last.enter_async_context(running)
            await until(lambda: statuses.count(200) >= 80)
        sent = statuses.count(200)
        found = await log.with_outcomes(sent)
    assert len(found) == sent == len(demo.app.record)
    assert all(one.outcome.ending == ENDING_COMPLETE for one in found)
