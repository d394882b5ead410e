"""GET /healthz and /readyz, on each of the servers that speak HTTP."""

import asyncio
import fcntl
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from gateway.server import Server as GatewayServer
from gateway.settings import Settings as GatewaySettings
from policyd.asgi import probes
from policyd.asgi.probes import Probes
from policyd.command.address import Address
from policyd.engine.settings import KeyChanges
from policyd.server.server import Server
from policyd.store import LogFilter, Store
from tests.support import consoles
from tests.support.commands import invoke
from tests.support.databases import taking_changes
from tests.support.health import health_stub
from tests.support.open_files import delete_in_use
from tests.support.raw_http import Response, ask

FREE = Address("127.0.0.1", 0)
NOWHERE = "127.0.0.1:1"
PATHS = ("/healthz", "/readyz")


async def probed(url: str) -> dict[str, int]:
    """The status of each probe. HEAD gets the same one as GET."""
    found = {}
    for path in PATHS:
        full, head = await ask(url, "GET", path + "?x"), await ask(url, "HEAD", path)
        assert full.status == head.status
        assert full.all("Content-Type") == ["application/json"]
        assert isinstance(json.loads(full.body), dict)
        assert head.body == b""
        assert len(full.all("Date")) == 1
        assert (await ask(url, "POST", path)).status == 405
        found[path] = full.status
    return found


async def ready(url: str) -> Response:
    return await ask(url, "GET", "/readyz")


def gateway(policyd: object, **given: object) -> GatewayServer:
    settings = GatewaySettings(listen=FREE, policyd=str(policyd), upstream=f"http://{NOWHERE}")
    return GatewayServer(replace(settings, **given))  # type: ignore[arg-type]  # any of them


@pytest.mark.parametrize("token", [False, True])
async def test_without_a_key_and_a_trace(tmp_path: Path, token: bool) -> None:
    """A probe is answered without a key, and is neither logged nor counted."""
    made = consoles.settings(tmp_path, http=FREE)
    if token:
        file = tmp_path / "caller-token"
        file.write_text("0123456789abcdef")
        file.chmod(0o600)
        made = replace(made, caller_token_file=file)
    store = Store(made.database_url)
    async with Server(made) as server, gateway(server.grpc) as before:
        for url in (before.url, f"http://{server.http}"):
            assert await probed(url) == dict.fromkeys(PATHS, 200)
        # Other spellings are requests like any other.
        for path in ("/healthz/", "/v1/healthz", "/Healthz", "/%68ealthz"):
            assert (await ask(before.url, "GET", path)).status == (503 if token else 403)
    assert store.log.page(LogFilter()) == []
    assert store.refused_keys.total() == (0 if token else 4)
    store.close()


async def test_a_gateway_without_policyd() -> None:
    """A gateway without policyd is alive, and ready only if its operator lets requests pass."""
    async with gateway(NOWHERE) as server:
        assert await probed(server.url) == {"/healthz": 200, "/readyz": 503}
        answer = await ready(server.url)
        assert json.loads(answer.body)["reason"] == "policyd cannot be reached"
    async with gateway(NOWHERE, on_policy_error="allow") as server:
        assert await probed(server.url) == dict.fromkeys(PATHS, 200)


async def test_a_policyd_that_hangs() -> None:
    """The gateway soon reports that it is not ready, however many probes arrive, and asks policyd
    once at a time.
    """
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    host, port = silent.sockets[0].getsockname()
    async with gateway(f"{host}:{port}") as server, asyncio.timeout(30):
        answers = await asyncio.gather(*(ready(server.url) for _ in range(50)))
    assert {answer.status for answer in answers} == {503}
    assert len(held) < 10
    silent.close()
    for writer in held:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("unready", [False, True])
async def test_stale_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unready: bool
) -> None:
    """The HTTP check reports stale settings, and is not ready then if the operator wants that.

    It stays alive.
    """
    made = consoles.settings(
        tmp_path, http=FREE, max_staleness=2.0, poll_interval=0.05, unready_when_stale=unready
    )
    async with Server(made) as server:
        url = f"http://{server.http}"
        assert await probed(url) == dict.fromkeys(PATHS, 200)
        assert (await ask(url, "GET", "/settingsz")).body == b'{"state":"fresh"}'

        def fail(*_: object) -> KeyChanges:
            raise OSError("away")

        monkeypatch.setattr(server._keys, "_changes_since", fail)
        async with asyncio.timeout(30):
            while (await ask(url, "GET", "/settingsz")).status == 200:
                await asyncio.sleep(0.05)
            while unready and (await ready(url)).status == 200:
                await asyncio.sleep(0.05)
        assert b"stale" in (await ask(url, "GET", "/settingsz")).body
        assert (await ask(url, "GET", "/decisionsz")).body == b'{"state":"deciding"}'
        assert (await ready(url)).status == (503 if unready else 200)
        assert (await ask(url, "GET", "/healthz")).status == 200


async def until(url: str, wanted: Callable[[int, dict[str, Any]], bool]) -> dict[str, Any]:
    """The body of /readyz, once its status and it are as wanted."""
    async with asyncio.timeout(30):
        while True:
            answer = await ready(url)
            body: dict[str, Any] = json.loads(answer.body)
            if wanted(answer.status, body):
                return body
            await asyncio.sleep(0.1)


async def health(server: Server) -> int:
    """What gRPC's health service tells of readiness."""
    async with grpc.aio.insecure_channel(str(server.grpc)) as channel:
        asked = health_pb2.HealthCheckRequest()
        return int((await health_stub(channel).Check(asked, timeout=30)).status)


@contextmanager
def filled(spool: Path) -> Iterator[None]:
    """A spool at its limit: another process writes a segment of that size."""
    segment = spool / "ffffffffffff-00000001.jsonl"
    with segment.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(2**16)
        yield
        segment.unlink()


@pytest.mark.parametrize("drops", [False, True])
async def test_a_full_log(tmp_path: Path, drops: bool) -> None:
    """Where no decision can be logged, a worker that gives none then is not ready, and is again
    once there is room, without a request. One that drops decisions stays ready, with a warning.
    """
    made = consoles.settings(tmp_path, http=FREE, spool_limit=2**16, drop_when_full=drops)
    async with Server(made) as server, gateway(server.grpc) as before:
        url = f"http://{server.http}"
        assert json.loads((await ready(url)).body) == {"state": "ready"}
        assert (await ready(before.url)).status == 200
        with filled(made.spool):
            body = await until(url, lambda status, body: status == 503 or "warnings" in body)
            full = "the decision log is full"
            if drops:
                assert body["warnings"] == [f"{full}: decisions are answered and not logged"]
            else:
                assert body["reason"] == f"{full}: requests get no decision"
            async with asyncio.timeout(30):
                wanted = health_pb2.HealthCheckResponse
                status = wanted.SERVING if drops else wanted.NOT_SERVING
                while await health(server) != status:
                    await asyncio.sleep(0.1)
            assert (await ask(url, "GET", "/healthz")).status == 200
            body = await until(before.url, lambda status, _: (status == 200) is drops)
            assert drops or "policyd gives no decisions" in body["reason"]
        await until(before.url, lambda status, _: status == 200)
        await until(url, lambda status, body: status == 200 and "warnings" not in body)


@pytest.mark.parametrize("drops", [False, True])
async def test_an_unwritable_log(tmp_path: Path, drops: bool) -> None:
    """The same holds for a spool that cannot be written, by --log-error."""
    made = consoles.settings(tmp_path, http=FREE, drop_on_error=drops)
    async with Server(made) as server:
        delete_in_use(made.spool)
        body = await until(
            f"http://{server.http}", lambda status, body: status == 503 or "warnings" in body
        )
        told = body["warnings"][0] if drops else body["reason"]
        assert told.startswith("the decision log cannot be written: ")
        assert str(tmp_path) not in told


async def test_a_read_only_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the database takes no changes, a worker is ready, with a warning. The status says why,
    and the log does, once."""
    began = datetime.now(UTC).replace(microsecond=0)
    made = consoles.settings(tmp_path, http=FREE)
    caplog.set_level(logging.INFO, "policyd.server.presence")
    async with Server(made) as server:
        url = f"http://{server.http}"
        where = ("--server", str(server.admin), "--token-file", str(made.admin_token_file))
        with taking_changes() as allow:
            allow(False)
            body = await until(url, lambda _, body: "warnings" in body)
            [told] = body["warnings"]
            before, _, after = told.partition(" since ")
            assert before == "the database has taken no changes"
            assert began <= datetime.fromisoformat(after.partition(": ")[0]) <= datetime.now(UTC)
            assert await health(server) == health_pb2.HealthCheckResponse.SERVING
            shown = await asyncio.to_thread(invoke, "policyd", "logs", "status", "--json", *where)
            assert "readonly" in json.loads(shown.stdout)["database_problem"]
            async with asyncio.timeout(30):
                while not caplog.messages:
                    await asyncio.sleep(0.1)
            allow(True)
            await until(url, lambda _, body: "warnings" not in body)
        [line, end] = caplog.messages
        assert line.startswith("the database takes no changes: ")
        assert "make the file and its folder writable" in line
        assert end == "the database takes changes again"


async def test_a_database_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is away, a worker is ready, with a warning that says since when."""
    made = consoles.settings(tmp_path, http=FREE, poll_interval=0.05)
    async with Server(made) as server:

        def fail(*_: object) -> KeyChanges:
            raise OSError("with a secret")

        monkeypatch.setattr(server._keys, "_changes_since", fail)
        body = await until(f"http://{server.http}", lambda _, body: "warnings" in body)
        [told] = body["warnings"]
        assert told.startswith("the database has been away since 2")
        assert "secret" not in told


async def test_the_console(tmp_path: Path) -> None:
    """The console answers probes under any host name and without a session.

    Without its database it is not ready.
    """
    async with consoles.running(consoles.settings(tmp_path)) as console:
        assert await probed(console.url) == dict.fromkeys(PATHS, 200)
        console.store.close()
        await asyncio.to_thread(shutil.rmtree, tmp_path)
        async with asyncio.timeout(30):
            while (answer := await ready(console.url)).status == 200:
                await asyncio.sleep(0.1)
        assert answer.status == 503
        assert json.loads(answer.body)["reason"] == "the database cannot be reached"
        assert (await ask(console.url, "GET", "/healthz")).status == 200


class Checks:
    """Checks that are counted, and that wait until the test lets them go."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.problem = ""

    async def __call__(self) -> str:
        self.count += 1
        await self.gate.wait()
        return self.problem


async def test_one_check_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a check is reused for a while, a check that hangs is not begun again, and a
    fault is reported.
    """
    monkeypatch.setattr(probes, "PATIENCE", 0.05)
    checks = Checks()
    asked = Probes(checks)

    async def status() -> set[int]:
        answers = await asyncio.gather(*(asked.answer("GET", "/readyz") for _ in range(100)))
        return {answer.status for answer in answers if answer}

    assert await status() == await status() == {200}
    assert checks.count == 1
    monkeypatch.setattr(probes, "_KEEP", 0)
    checks.gate.clear()
    assert await status() == await status() == {503}
    assert checks.count == 2
    checks.gate.set()
    assert await status() == {200}
    checks.problem = "no"
    await asyncio.sleep(0)
    assert await status() == {503}

    looks: Iterator[str | BaseException] = iter(["no", asyncio.CancelledError(), "no", ""])

    async def look() -> str:
        found = next(looks)
        if isinstance(found, BaseException):
            raise found
        return str(found)

    looking = Probes(look)
    told = [await looking.answer("GET", "/readyz") for _ in range(4)]
    # Another check follows one that was cancelled.
    assert [answer and answer.status for answer in told] == [503, 503, 503, 200]

    async def fail() -> str:
        raise RuntimeError("with a secret")

    answer = await Probes(fail).answer("GET", "/readyz")
    assert answer
    assert answer.status == 503
    assert b"secret" not in answer.body
