"""Child processes, and a parent that stands still: stopped, or busy for too long."""

import array
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from policyd.command import child
from policyd.command.child import Child
from policyd.errors import SettingsError
from policyd.server.preparation import background_worker
from policyd.settings import dump_settings
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.faults.test_faults import children, is_running
from tests.support.consoles import prepare, settings
from tests.support.health import health_stub
from tests.support.load import PATIENCE
from tests.support.processes import Policyd

SILENCE = child._SILENCE * child._TURN
TURN = 0.5
"""Seconds: a child's beat comes once a second, so ten turns hold five."""


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Child]:
    """A background worker that is watched with short deadlines."""
    monkeypatch.setattr(child, "_TURN", TURN)
    chosen = settings(tmp_path, console=None)
    await asyncio.to_thread(prepare, chosen)
    worker = background_worker(chosen)
    # The child has longer to become ready than between two signs of life.
    monkeypatch.setattr(child, "_START", int(PATIENCE / TURN))
    await worker.start()
    watching = asyncio.create_task(worker.keep_running())
    yield worker
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    await worker.stop()


def stand_still(seconds: float, until: Callable[[], bool] = lambda: True) -> None:
    """Stand still as a stopped or busy parent does: its event loop does not turn."""
    began = time.monotonic()
    while (spent := time.monotonic() - began) < seconds or not (until() or spent > PATIENCE):
        time.sleep(0.05)


def pid(running: Child) -> int:
    assert running._process is not None
    return running._process.pid


async def test_a_parent_that_is_stopped_and_continued(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    """A parent that a shell stops, or whose machine is suspended, keeps its children: a server its
    background worker, a supervisor its workers.
    """
    servers: dict[Policyd, set[int]] = {}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        policyd = start(Policyd, tmp_path / str(count), "--workers", str(count))
        servers[policyd] = children(policyd)
        assert len(servers[policyd]) == (1 if count == 1 else count + 1)
    for number, pause in ((signal.SIGSTOP, SILENCE * 1.6), (signal.SIGCONT, SILENCE / 3)):
        for policyd in servers:
            policyd.send(number)
        await asyncio.sleep(pause)
    for policyd, before in servers.items():
        assert children(policyd) == before
        assert not [line for line in policyd.errors if "hangs" in line or "ended" in line]
        assert await asyncio.to_thread(policyd.stop) == 0


async def test_a_server_that_is_stopped_and_continued(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    """A server that was stopped for longer than settings may be stale reports so until it has
    looked, and serves again.
    """
    policyd = start(Policyd, tmp_path, "--max-staleness", "1", "--on-stale", "not-serving")
    key = policyd.create_key("enforce")
    async with grpc.aio.insecure_channel(policyd.grpc) as channel:
        policyd.send(signal.SIGSTOP)
        await asyncio.sleep(3)
        policyd.send(signal.SIGCONT)
        descriptor = EvaluateRequest(key=key, has_user=False)
        answer = await PolicyServiceStub(channel).Evaluate(descriptor, timeout=PATIENCE)
        assert answer.decision == DECISION_DENY
        async with asyncio.timeout(PATIENCE):
            # Twice in a row, as the first probe may precede the first reading.
            since = time.monotonic()
            while time.monotonic() < since + 2:
                health = await health_stub(channel).Check(HealthCheckRequest(), timeout=PATIENCE)
                if health.status != HealthCheckResponse.SERVING:
                    since = time.monotonic()
                await asyncio.sleep(0.1)
    assert not [line for line in policyd.errors if "settings stay at" in line]


async def test_a_parent_that_is_busy(running: Child, caplog: pytest.LogCaptureFixture) -> None:
    """A parent whose event loop is blocked again and again does not take its child for dead."""
    before = pid(running)
    for _ in range(2):
        stand_still(child._SILENCE * TURN * 1.5)
        await asyncio.sleep(TURN / 2)
    await asyncio.sleep(4 * TURN)
    assert pid(running) == before
    assert "hangs" not in caplog.text


async def test_a_parent_and_a_child_that_are_stopped(
    running: Child, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Ctrl-Z stops both, the child has its time from when the parent goes on."""
    before = pid(running)
    os.kill(before, signal.SIGSTOP)
    stand_still(child._SILENCE * TURN * 1.5)  # The parent is this process.
    os.kill(before, signal.SIGCONT)
    await asyncio.sleep(child._SILENCE * TURN)
    assert pid(running) == before
    assert "hangs" not in caplog.text


async def test_a_child_that_hangs(running: Child, caplog: pytest.LogCaptureFixture) -> None:
    """A child that hangs is killed and replaced in time, though its parent has pauses."""
    before = pid(running)
    os.kill(before, signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE):
        while pid(running) == before:
            stand_still(2 * TURN)
            await asyncio.sleep(TURN)
    assert "hangs and is killed" in caplog.text


async def test_a_parent_that_is_busy_at_the_start_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A child that starts or ends in time while its parent is busy is not taken for late."""
    chosen = settings(tmp_path, console=None, grace=0.0)
    await asyncio.to_thread(prepare, chosen)
    worker = background_worker(chosen)
    monkeypatch.setattr(child, "_START", 2)
    starting = asyncio.create_task(worker.start())
    async with asyncio.timeout(PATIENCE):
        while worker._process is None:
            await asyncio.sleep(0.01)
    pipe = worker._process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]  # It is asyncio's own.
    stand_still(4, until=lambda: _unread(pipe.get_extra_info("pipe").fileno()) > 0)
    await starting
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0.1)  # The child's standard input is closed meanwhile.
    number = pid(worker)
    stand_still(7, until=lambda: not is_running(number))
    await stopping
    assert worker._process.returncode == 0
    assert "killed" not in caplog.text


async def test_a_child_that_never_gets_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that never gets ready is killed, and the log mentions it."""
    monkeypatch.setattr(child, "_TURN", TURN)
    monkeypatch.setattr(child, "_START", 4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "silent.py").write_text("import time\ntime.sleep(600)\n")
    silent = Child("a module that says nothing", "silent", {}, 1.0)
    with pytest.raises(SettingsError, match="was not ready after 2 s"):
        await silent.start()
    assert silent._process is not None
    async with asyncio.timeout(PATIENCE):
        assert await silent._process.wait() == -signal.SIGKILL


def test_a_parent_that_reads_nothing(tmp_path: Path) -> None:
    """A child works on, however many of its signs of life lie unread, and ends when it is asked
    to."""
    chosen = settings(tmp_path, console=None)
    prepare(chosen)
    reading, writing = os.pipe()
    room = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    filled = os.write(writing, b"x" * (room - len("ready\n") - 1))
    command = (sys.executable, "-m", "policyd.server.background", "info")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing)
    try:
        assert process.stdin is not None
        told = {"settings": dump_settings(chosen), "sockets": {}, "position": None}
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
        give_up = time.monotonic() + PATIENCE
        while _unread(reading) == filled and time.monotonic() < give_up:
            time.sleep(0.05)
        time.sleep(2.5)  # The pipe has no room for two signs of life.
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


def _unread(descriptor: int) -> int:
    found = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, found)
    return found[0]
