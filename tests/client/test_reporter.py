"""Outcomes reach policyd in batches and wait while it is away; lost ones are counted."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from policyd.client import PolicyClient, reporter
from policyd.v1.policy_pb2 import ENDING_COMPLETE, Outcome
from tests.support.reports import PATIENCE, Recorder, make_recorder
from tests.support.waiting import until

MANY = reporter.MAX_WAITING


@pytest_asyncio.fixture
async def policyd() -> AsyncIterator[Recorder]:
    recorder = await make_recorder()
    async with recorder.serving():
        yield recorder


def outcomes(number: int, begin: int = 0) -> list[Outcome]:
    return [
        Outcome(decision_id=f"{begin + count:032x}", ending=ENDING_COMPLETE, http_status=200)
        for count in range(number)
    ]


def losses(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the reporter logged of losses."""
    return [one.getMessage() for one in caplog.records if one.name == "policyd.client.reporter"]


async def test_batches(policyd: Recorder) -> None:
    """Many outcomes go out in calls of a thousand at most, in their order, each once."""
    sent = outcomes(2500)
    async with PolicyClient(policyd.address) as client:
        for outcome in sent:
            client.report(outcome)
        await until(lambda: len(policyd.outcomes) == 2500)
    assert policyd.outcomes == sent
    assert [len(batch) for batch in policyd.batches] == [1000, 1000, 500]


async def test_large_ones(policyd: Recorder) -> None:
    """A call holds a megabyte at most, so that policyd does not reject it for its size."""
    sent = [Outcome(decision_id=f"{number:032x}", model="m" * 3000) for number in range(1000)]
    async with PolicyClient(policyd.address) as client:
        for outcome in sent:
            client.report(outcome)
    assert policyd.outcomes == sent
    sizes = [sum(one.ByteSize() for one in batch) for batch in policyd.batches]
    assert max(sizes) <= reporter.MAX_BATCH_BYTES
    assert len(sizes) == 3


async def test_one_that_is_too_large(policyd: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """An outcome that is too large is lost alone."""
    async with PolicyClient(policyd.address) as client:
        client.report(Outcome(decision_id="0" * 32, model="m" * reporter.MAX_OUTCOME))
        client.report(outcomes(1)[0])
    assert policyd.outcomes == outcomes(1)
    assert losses(caplog) == ["outcomes of requests are lost (1 so far): it is over 4096 bytes"]


async def test_closing_sends_what_waits(policyd: Recorder) -> None:
    """No outcome that was reported before the client is closed is lost."""
    client = PolicyClient(policyd.address)
    for outcome in outcomes(1500):
        client.report(outcome)
    await client.close()
    assert policyd.outcomes == outcomes(1500)


async def test_closing_while_policyd_is_away(
    policyd: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing ends all the same, and logs what was lost; later reports are lost too."""
    policyd.reporting = grpc.StatusCode.UNAVAILABLE
    client = PolicyClient(policyd.address)
    for outcome in outcomes(7):
        client.report(outcome)
    async with asyncio.timeout(PATIENCE):
        await client.close()
    client.report(outcomes(1)[0])
    (line,) = losses(caplog)
    assert "(7 so far): policyd did not take them before the end" in line
    assert not policyd.outcomes


async def test_closing_while_policyd_hangs(policyd: Recorder) -> None:
    """Closing ends all the same."""
    policyd.gate.clear()
    client = PolicyClient(policyd.address)
    client.report(outcomes(1)[0])
    await until(lambda: policyd.calls == 1)
    async with asyncio.timeout(PATIENCE):
        await client.close()
    assert not policyd.outcomes
    policyd.gate.set()


@pytest.mark.parametrize("status", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"])
async def test_what_passes(policyd: Recorder, status: str) -> None:
    """The reporter repeats a call after a passing error until policyd takes it, and sends newer
    outcomes behind it.
    """
    policyd.reporting = grpc.StatusCode[status]
    async with PolicyClient(policyd.address) as client:
        for outcome in outcomes(1200):
            client.report(outcome)
        await until(lambda: policyd.calls >= 3)
        client.report(outcomes(1, begin=1200)[0])
        policyd.reporting = None
        await until(lambda: len(policyd.outcomes) == 1201)
    assert policyd.outcomes == outcomes(1201)


async def test_policyd_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    """What is reported before policyd starts, and while it is gone, reaches it when it is back."""
    policyd = await make_recorder()
    async with policyd.serving():
        pass  # It has an address now, at which nothing listens.
    async with PolicyClient(policyd.address) as client:
        for begin in (0, 300):
            for outcome in outcomes(300, begin):
                client.report(outcome)
            await asyncio.sleep(0.3)
            async with policyd.serving():
                await until(lambda number=begin + 300: len(policyd.outcomes) == number)
    assert policyd.outcomes == outcomes(600)
    assert losses(caplog) == []


async def test_more_than_may_wait(policyd: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """Outcomes beyond the bound are lost, counted and logged once; the others arrive."""
    policyd.reporting = grpc.StatusCode.UNAVAILABLE
    async with PolicyClient(policyd.address) as client:
        for outcome in outcomes(MANY + 500):
            client.report(outcome)
        assert client.outcomes_lost == 500
        policyd.reporting = None
        await until(lambda: len(policyd.outcomes) == MANY)
        client.report(outcomes(1, begin=MANY + 500)[0])
        await until(lambda: len(policyd.outcomes) == MANY + 1)
    assert policyd.outcomes == outcomes(MANY) + outcomes(1, begin=MANY + 500)
    (line,) = losses(caplog)
    assert "(1 so far): policyd has not taken any for too long" in line


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "INTERNAL", "UNAUTHENTICATED"])
async def test_what_does_not_pass(
    policyd: Recorder, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    """After a lasting error the outcomes of that call are lost and counted.

    The log names the cause, and the next ones go out.
    """
    policyd.reporting = grpc.StatusCode[status]
    async with PolicyClient(policyd.address, timeout=10) as client:
        for outcome in outcomes(3):
            client.report(outcome)
        await until(lambda: client.outcomes_lost == 3)
        policyd.reporting = None
        client.report(outcomes(1)[0])
        await until(lambda: policyd.outcomes == outcomes(1))
    assert policyd.calls == 2
    (line,) = losses(caplog)
    assert f"(3 so far): {status}: as the test wants it" in line


async def test_those_that_policyd_rejects(
    policyd: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Rejected outcomes are counted and not sent again; the others of their call count as taken."""
    sent = outcomes(3)
    sent[1].http_status = -1
    async with PolicyClient(policyd.address) as client:
        for outcome in sent:
            client.report(outcome)
        await until(lambda: client.outcomes_lost == 1)
    assert policyd.calls == 1
    assert policyd.outcomes == [sent[0], sent[2]]
    (line,) = losses(caplog)
    assert "(1 so far): http_status is a number from 0 to 999" in line


async def test_an_old_policyd(policyd: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """A policyd that does not know outcomes gets none, and the log mentions it in one line."""
    policyd.reporting = grpc.StatusCode.UNIMPLEMENTED
    async with PolicyClient(policyd.address) as client:
        client.report(outcomes(1)[0])
        await until(lambda: bool(losses(caplog)))
        for outcome in outcomes(2000):
            client.report(outcome)
        await asyncio.sleep(0.3)
        assert client.outcomes_lost == 0
    assert policyd.calls == 1
    (line,) = losses(caplog)
    assert "update policyd" in line


async def test_an_old_policyd_is_updated(
    policyd: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the reporter asks it again, and sends what is reported from then on."""
    monkeypatch.setattr(reporter, "_OLD_POLICYD_PAUSE", 0.0)
    policyd.reporting = grpc.StatusCode.UNIMPLEMENTED
    async with PolicyClient(policyd.address) as client:
        client.report(outcomes(1)[0])
        await until(lambda: bool(losses(caplog)))
        client.report(outcomes(1)[0])
        await until(lambda: policyd.calls == 2)
        policyd.reporting = None
        async with asyncio.timeout(PATIENCE):
            while not policyd.outcomes:
                client.report(outcomes(1)[0])
                await asyncio.sleep(0.01)
    assert len(losses(caplog)) == 1
