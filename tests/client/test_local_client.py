"""LocalPolicyClient before a policyd that misbehaves as only a program of a test can."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from policyd.client.local import LocalPolicyClient
from policyd.client.local_look import look
from policyd.client.local_telemetry import LocalTelemetry
from policyd.client.request_outcome import RequestOutcome
from policyd.decider.metrics import DecisionMetrics
from policyd.errors import NoDecision, SettingsError
from policyd.keys import api_key
from policyd.telemetry.metrics import Metrics
from policyd.v1 import local_pb2 as pb
from policyd.v1.local_pb2_grpc import (
    LocalDecisionServiceServicer,
    add_LocalDecisionServiceServicer_to_server,
)
from policyd.v1.policy_pb2 import DECISION_ALLOW, DECISION_DENY, ENDING_COMPLETE, EvaluateRequest
from tests.support.waiting import until

EPOCH = "e" * 32
KEY = "up-" + "k" * 48
REQUEST = EvaluateRequest(key=KEY, has_user=True)


class Misbehaving(LocalDecisionServiceServicer):
    """Tells settings with one key, and as a test wants it, nothing more, or another database."""

    def __init__(self) -> None:
        self.database = "d" * 32
        self.beats = True
        self.why = "the database is away"
        self.followers: list[pb.WatchKeysRequest] = []
        self.spools: list[pb.ResumeSpool] = []

    async def WatchKeys(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # It writes by `context`.
        """See local.proto."""
        self.followers.append(await context.read())
        await self._beat(context)
        for event in (
            {"snapshot": pb.SnapshotBegin()},
            {
                "keys": pb.KeyPiece(
                    shared=[pb.SharedSettings(accept=["user"])],
                    keys=[pb.KeyInForce(digest=api_key.digest(KEY), key_id="key_1")],
                )
            },
            {"complete": pb.SettingsComplete(database=self.database, revision=3, epoch=EPOCH)},
        ):
            await context.write(pb.WatchKeysResponse(**event))
        while True:
            await asyncio.sleep(0.1)
            if self.beats:
                await self._beat(context)

    async def _beat(self, context: Any) -> None:
        told = pb.Heartbeat(revision=3, epoch=EPOCH, time=time.time(), database=self.database)
        await context.write(pb.WatchKeysResponse(heartbeat=told))

    async def AppendDecisions(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # It writes by `context`.
        """Takes nothing, and says why."""
        self.spools.append((await context.read()).resume)
        await context.abort(grpc.StatusCode.UNAVAILABLE, self.why)


@pytest.fixture
async def policyd() -> AsyncIterator[tuple[Misbehaving, str]]:
    """It, and its address."""
    server = grpc.aio.server()
    servicer = Misbehaving()
    add_LocalDecisionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(0)


@contextlib.asynccontextmanager
async def client(target: str, spool: Path, **more: Any) -> AsyncIterator[LocalPolicyClient]:
    """A client, which does not wait at its end for what policyd does not take."""
    made = await LocalPolicyClient(target, spool=spool, token="t" * 16, **more).__aenter__()
    try:
        yield made
    finally:
        await made.close(carrying=0.1)


def segments(spool: Path) -> list[Path]:
    """The files of decisions in a spool."""
    return list(spool.glob("*.jsonl"))


async def test_it_decides(policyd: tuple[Misbehaving, str], tmp_path: Path) -> None:
    """It decides by the settings that it was sent, also about an unknown key, and says which
    revision is in force."""
    async with client(policyd[1], tmp_path) as local:
        assert (await local.evaluate(REQUEST)).decision == DECISION_ALLOW
        other = EvaluateRequest(key="up-" + "x" * 48, has_user=True)
        assert (await local.evaluate(other)).decision == DECISION_DENY
        assert await local.can_decide(1)
    assert [one.has_none for one in policyd[0].followers] == [True]
    [segment] = segments(tmp_path)
    assert segment.read_bytes().count(b'"key_1"') == 1


async def test_why_decisions_stay(
    policyd: tuple[Misbehaving, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where policyd takes no decisions, the log says why once, and again for another cause."""
    servicer, target = policyd
    told = "decisions stay in the spool: UNAVAILABLE: "
    async with client(target, tmp_path):
        await until(lambda: f"{told}{servicer.why}" in caplog.text)
        servicer.why = "another cause"
        await until(lambda: f"{told}{servicer.why}" in caplog.text)
    assert caplog.text.count(told) == 2


async def test_errors_are_those_of_policyd(
    policyd: tuple[Misbehaving, str], tmp_path: Path
) -> None:
    """A request that cannot be decided gets no decision, and that is no outage."""
    async with client(policyd[1], tmp_path, timeout=0.1) as local:
        for asked in (EvaluateRequest(key=KEY), EvaluateRequest(key=KEY, min_revision=9)):
            with pytest.raises(NoDecision) as caught:
                await local.evaluate(asked)
            assert not caught.value.is_outage


async def test_errors_are_counted(policyd: tuple[Misbehaving, str], tmp_path: Path) -> None:
    """Errors are counted by the same reasons as at policyd; a policyd that is not reached counts as
    none."""
    metrics = Metrics()
    watched = LocalTelemetry(DecisionMetrics(metrics, ("local",)))

    def counts() -> dict[str, float]:
        counted = metrics._counts["policyd_errors_total"]._counts
        return {reason: one.pending for (reason,), one in counted.items() if one.pending}

    async with client(policyd[1], tmp_path, timeout=0.1, telemetry=watched) as local:
        for asked in (EvaluateRequest(key=KEY), EvaluateRequest(key=KEY, min_revision=9)):
            with pytest.raises(NoDecision):
                await local.evaluate(asked)
        assert counts() == {"INVALID_DESCRIPTOR": 1, "REVISION_NOT_REACHED": 1}
    async with client("127.0.0.1:1", tmp_path / "other", telemetry=watched) as local:
        with pytest.raises(NoDecision):
            await local.evaluate(REQUEST)
    assert counts() == {"INVALID_DESCRIPTOR": 1, "REVISION_NOT_REACHED": 1}


async def test_outcomes_of_impossible_times(
    policyd: tuple[Misbehaving, str], tmp_path: Path
) -> None:
    """Such outcomes are lost and counted, because one in the log would make its batch unreadable.
    Outcomes beside them are logged."""
    name = "0123456789abcdef" * 2
    async with client(policyd[1], tmp_path / "spool") as deciding:
        for duration, first in ((-1, None), (5, 6), (5, -1), (2**60, 5), (2**49, 5), (5, 5)):
            deciding.record(RequestOutcome(name, ENDING_COMPLETE, duration, 200, first))
        assert deciding.outcomes_lost == 4
    assert deciding.outcomes_lost == 4


@pytest.mark.slow
async def test_a_silent_stream(
    policyd: tuple[Misbehaving, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without heartbeats settings grow too old and decide nothing; a new stream is begun."""
    servicer, target = policyd
    async with client(target, tmp_path, max_staleness=1) as local:
        servicer.beats = False
        await until(lambda: local.unready)
        with pytest.raises(NoDecision, match="old") as caught:
            await local.evaluate(REQUEST)
        assert caught.value.is_outage
        await until(lambda: len(servicer.followers) > 1)
        servicer.beats = True
        await until(lambda: not local.unready)
        assert (await local.evaluate(REQUEST)).decision == DECISION_ALLOW
    assert any("silent" in message for message in caplog.messages)


async def test_another_database(
    policyd: tuple[Misbehaving, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A policyd of another database is not followed, and gets no decisions: the log says so."""
    caplog.set_level(logging.ERROR)
    servicer, target = policyd
    async with client(target, tmp_path) as local:
        await local.evaluate(REQUEST)
        await until(lambda: servicer.spools)
        servicer.database = "c" * 32
        await until(lambda: any("another" in message for message in caplog.messages))
        assert local.keys.revision == 3
    assert {one.database for one in servicer.spools} == {"d" * 32}
    async with client(target, tmp_path) as local:
        with pytest.raises(NoDecision, match="holds entries of another database"):
            await local.evaluate(REQUEST)


async def test_before_any_settings(tmp_path: Path) -> None:
    """Without a policyd there is an outage, which on_error may allow to pass."""
    async with client("127.0.0.1:1", tmp_path / "a") as local:
        with pytest.raises(NoDecision) as caught:
            await local.evaluate(REQUEST)
        assert caught.value.is_outage
        assert not await local.can_reach(1)
    async with client("127.0.0.1:1", tmp_path / "b", on_error="allow") as local:
        assert (await local.evaluate(REQUEST)).decision == DECISION_ALLOW


async def test_a_policyd_without_the_setting(tmp_path: Path) -> None:
    """The error names the setting that policyd lacks."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(NoDecision, match="--local-token-file") as caught:
        await look(f"127.0.0.1:{port}", "t" * 16, None, seconds=30)
    assert not caught.value.is_outage
    await server.stop(0)


async def test_a_look(policyd: tuple[Misbehaving, str]) -> None:
    """A look returns the revision, and whether a key is in force."""
    look_at = (policyd[1], "t" * 16, None)
    assert await look(*look_at, seconds=30, key=KEY) == (3, True)
    assert (await look(*look_at, seconds=30)).revision == 3


async def test_a_policyds_spool(tmp_path: Path) -> None:
    """The spool of a policyd is not taken for a gateway's."""
    (tmp_path / "database").write_text("d" * 32)
    with pytest.raises(SettingsError, match="is the spool of a policyd"):
        await LocalPolicyClient("x:1", spool=tmp_path, token="t").__aenter__()


async def test_a_start_that_is_cancelled(tmp_path: Path) -> None:
    """A client whose caller stops waiting for it leaves no task behind, and its spool is free."""
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), client(target, tmp_path):
                    raise AssertionError("it waits for a policyd")
    assert asyncio.all_tasks() == before
