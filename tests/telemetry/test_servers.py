"""Traces, access lines and JSON of the running servers: a gateway, policyd and an upstream."""

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import grpc
import pytest

from policyd.telemetry.log import FORMATS
from tests.support.collector import Collector, Received
from tests.support.commands import logged
from tests.support.databases import migrated
from tests.support.load import MODE, PATIENCE, keys
from tests.support.processes import BIN, Policyd, environment
from tests.support.stack import Background, Gateway, Upstream

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
USER = "alice@example.com"
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "user": USER}
UPSTREAM_KEY = "sk-proj-0123456789abcdefghij"
USERS_KEY = "0123456789abcdef0123"
TOKEN, WRONG = "a-token-of-callers", "a-token-that-is-wrong"
CHAT = "/v1/chat/completions"
NAMES = {"POST chat_completion", "describe", "ask", "chat gpt-4o", "Evaluate", "decide", "log"}


class Watched(NamedTuple):
    """The servers, what watches them, and an API key that enforces user IDs."""

    policyd: Policyd
    gateway: Gateway
    upstream: Upstream
    collector: Collector
    key: str

    async def ask(
        self, number: int, *, key: str | None = None, path: str = CHAT, **headers: str
    ) -> int:
        """The status of a request in the trace TRACE, whose last digits are `number`."""
        sent = {
            "traceparent": f"00-{trace(number)}-{SPAN}-01",
            "x-usagepanda-api-key": key or self.key,
            "Authorization": f"Bearer {UPSTREAM_KEY}",
        }
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        body = BODY if given.pop("user", "yes") == "yes" else BODY | {"user": ""}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.gateway.url + path, json=body, headers=sent | given) as response,
        ):
            await response.read()
            return response.status

    def spans(self, number: int, least: int) -> list[Received]:
        """The spans of that trace, once there are so many."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [span for span in self.collector.spans if span.trace_id == trace(number)]
            if len(found) >= least:
                return found
            assert time.monotonic() < deadline, [span.name for span in found]
            time.sleep(0.05)

    def lines(self, server: "Policyd | Gateway", logger: str, text: str) -> list[dict[str, Any]]:
        """The lines of `logger` in which `text` stands, once there is one."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [json.loads(line) for line in list(server.errors) if text in line]
            if found := [line for line in found if line["logger"] == logger]:
                return found
            assert time.monotonic() < deadline, server.errors
            time.sleep(0.05)


def trace(number: int) -> str:
    """The ID of a trace."""
    return TRACE[:-4] + f"{number:04x}"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, background: Background) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "users-key").write_text(USERS_KEY)
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    shown = ("--log-format", "json", "--access-log")
    with Collector() as collector, Upstream(background) as upstream:
        traced = ("--traces", collector.url)
        users = ("--trace-users-file", str(folder / "users-key"))
        asks = ("--http", "127.0.0.1:0", "--caller-token-file", str(folder / "token"))
        policyd = Policyd(migrated(folder), *shown, *traced, *users, *asks)
        key = keys(policyd.database_url, "create", "test", *MODE, "enforce")["key"]
        shows = ("--policyd-token-file", str(folder / "token"), "--policy-timeout", "30")
        gateway = Gateway(
            *(policyd.grpc, upstream.url, *shown, *traced, *shows), "--policy-timeout", "30"
        )
        yield Watched(policyd, gateway, upstream, collector, key)
        assert gateway.stop() == 0, gateway.errors
        assert policyd.stop() == 0, policyd.errors
        everything = "".join([*gateway.errors, *policyd.errors]).encode() + collector.raw
        admin_token = (folder / "admin-token").read_text().strip()
        for secret in (key, UPSTREAM_KEY, USERS_KEY, USER, TOKEN, WRONG, admin_token, "Hello"):
            assert secret.encode() not in everything
        for line in (*gateway.errors, *policyd.errors):
            assert {"time", "level", "logger", "event", "process"} <= set(json.loads(line))


async def test_one_trace(watched: Watched) -> None:
    """A client's trace goes through the gateway, policyd and the upstream: each step is a span,
    under the right parent, in one trace."""
    watched.upstream.forget()
    assert await watched.ask(1) == 200
    by_name = {span.name: span for span in watched.spans(1, 7)}
    assert set(by_name) == NAMES
    server, evaluate = by_name["POST chat_completion"], by_name["Evaluate"]
    assert server.parent_id == SPAN
    for name in ("describe", "ask", "chat gpt-4o"):
        assert by_name[name].parent_id == server.span_id
        assert by_name[name].service == "policyd-gateway"
    assert evaluate.parent_id == by_name["ask"].span_id
    for name in ("decide", "log"):
        assert by_name[name].parent_id == evaluate.span_id
        assert by_name[name].service == "policyd"
    [came] = watched.upstream.received
    upstream = by_name["chat gpt-4o"]
    assert came.header(b"traceparent") == f"00-{trace(1)}-{upstream.span_id}-01"
    kinds = {name: span.kind for name, span in by_name.items() if span.kind != "INTERNAL"}
    assert kinds == {
        "POST chat_completion": "SERVER",
        "ask": "CLIENT",
        "chat gpt-4o": "CLIENT",
        "Evaluate": "SERVER",
    }
    for span in by_name.values():
        assert span.began <= span.ended
        assert not span.is_error
        if span.service == "policyd-gateway":
            assert server.began <= span.began <= span.ended <= server.ended


async def test_attributes(watched: Watched) -> None:
    """Spans tell what was decided, and what the upstream gave, by the names of OpenTelemetry."""
    await watched.ask(2)
    by_name = {span.name: span.attributes for span in watched.spans(2, 7)}
    server, evaluate = by_name["POST chat_completion"], by_name["Evaluate"]
    assert server["http.request.method"] == "POST"
    assert server["url.path"] == CHAT
    assert server["http.response.status_code"] == 200
    assert server["policyd.verdict"] == evaluate["policyd.verdict"] == "allowed"
    assert server["policyd.decision_id"] == evaluate["policyd.decision_id"]
    assert server["policyd.api_key_id"] == evaluate["policyd.api_key_id"]
    assert server["policyd.trace_id"] == evaluate["policyd.trace_id"] == trace(2)
    assert evaluate["policyd.adapter"] == "grpc"
    assert len(evaluate["user.id"]) == 32
    upstream = by_name["chat gpt-4o"]
    assert upstream["gen_ai.operation.name"] == "chat"
    assert upstream["gen_ai.provider.name"] == "openai"
    assert upstream["gen_ai.request.model"] == "gpt-4o"
    assert upstream["gen_ai.response.model"].startswith("gpt-4o")
    assert upstream["gen_ai.response.id"]
    assert upstream["gen_ai.usage.input_tokens"] > 0
    assert upstream["gen_ai.usage.output_tokens"] > 0
    assert upstream["server.address"] == "127.0.0.1"
    assert upstream["http.response.status_code"] == 200


async def test_a_denial(watched: Watched) -> None:
    """A denied request has no upstream span; its denial is no error of a server's."""
    assert await watched.ask(3, user="no") == 422
    spans = watched.spans(3, 6)
    by_name = {span.name: span for span in spans}
    assert set(by_name) == NAMES - {"chat gpt-4o"}
    assert by_name["POST chat_completion"].attributes["policyd.verdict"] == "denied"
    assert by_name["POST chat_completion"].attributes["policyd.answered_by"] == "policyd"
    assert not any(span.is_error for span in spans)
    assert "user.id" not in by_name["Evaluate"].attributes


async def test_one_trace_id(watched: Watched) -> None:
    """The decision log, the spans and the lines of both servers have one trace ID, and one decision
    ID."""
    await watched.ask(4)
    [gateway] = watched.lines(watched.gateway, "access", trace(4))
    [policyd] = watched.lines(watched.policyd, "access", trace(4))
    assert gateway["decision_id"] == policyd["decision_id"]
    assert gateway["trace_id"] == policyd["trace_id"] == trace(4)
    assert gateway["api_key_id"] == policyd["api_key_id"]
    row = logged(watched.policyd.database_url, gateway["decision_id"])
    assert row["trace_id"] == trace(4)


async def test_a_clients_own_trace_id(watched: Watched) -> None:
    """The client's trace ID stays that of the decision log, and the spans name it, so that they are
    found by it."""
    await watched.ask(5, x_usagepanda_trace_id="my-trace-5")
    server = next(span for span in watched.spans(5, 7) if span.kind == "SERVER")
    assert server.attributes["policyd.trace_id"] == "my-trace-5"
    assert watched.lines(watched.gateway, "access", "my-trace-5")[0]["trace_id"] == "my-trace-5"


async def test_the_parent_samples(watched: Watched) -> None:
    """Where the client's trace is not sampled, no server sends a span of it, though each passes it
    on and logs it."""
    watched.upstream.forget()
    await watched.ask(6, traceparent=f"00-{trace(6)}-{SPAN}-00")
    await watched.ask(7)
    watched.spans(7, 7)
    watched.lines(watched.policyd, "access", trace(6))
    assert [span for span in watched.collector.spans if span.trace_id == trace(6)] == []
    assert watched.upstream.received[0].header(b"traceparent").startswith(f"00-{trace(6)}-")
    assert watched.upstream.received[0].header(b"traceparent").endswith("-00")


async def test_a_malformed_traceparent(watched: Watched) -> None:
    """A malformed traceparent is replaced by a new trace, which goes on to policyd and upstream."""
    watched.upstream.forget()
    await watched.ask(8, traceparent="00-zz", tracestate="vendor=1")
    [came] = watched.upstream.received
    version, new, _, flags = came.header(b"traceparent").split("-")
    assert (version, flags) == ("00", "01")
    assert came.header(b"tracestate") == ""
    [line] = watched.lines(watched.policyd, "access", new)
    assert line["trace_id"] == new


async def test_access_lines(watched: Watched) -> None:
    """A request's line says what it was, what was decided, by whom it was answered and how long it
    took; it names no query."""
    assert await watched.ask(9, path=CHAT + "?key=up-secret") == 200
    [line] = watched.lines(watched.gateway, "access", trace(9))
    assert (line["method"], line["path"], line["status"]) == ("POST", CHAT, 200)
    assert (line["by"], line["operation"], line["verdict"]) == (
        "upstream",
        "chat_completion",
        "allowed",
    )
    assert line["ending"] == "complete"
    assert line["request_bytes"] == len(json.dumps(BODY))
    assert line["bytes"] > 100
    assert 0 < line["upstream_seconds"] < line["seconds"]
    assert 0 < line["ask_seconds"] < line["seconds"]


async def test_strangers(watched: Watched) -> None:
    """Requests whose key is not in force have no lines of their own, at either server."""
    wrong = "up-" + "0" * 48
    statuses = [await watched.ask(16 + number, key=wrong) for number in range(5)]
    assert set(statuses) == {403}
    await watched.ask(10)
    watched.lines(watched.gateway, "access", trace(10))
    for server in (watched.gateway, watched.policyd):
        text = "".join(server.errors)
        assert not any(trace(16 + number) in text for number in range(5))
        assert wrong not in text
        assert "without an API key in force" in text


async def test_the_http_check(watched: Watched) -> None:
    """A proxy that asks --http passes its client's trace on by the header that it has anyway."""
    headers = {
        "x-usagepanda-api-key": watched.key,
        "x-policyd-token": TOKEN,
        "traceparent": f"00-{trace(11)}-{SPAN}-01",
        "content-type": "application/json",
    }
    url = f"http://{watched.policyd.http}/v1/check{CHAT}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=BODY, headers=headers) as response,
    ):
        assert response.status == 200
    by_name = {span.name: span for span in watched.spans(11, 3)}
    assert set(by_name) == {"Evaluate", "decide", "log"}
    assert by_name["Evaluate"].parent_id == SPAN
    assert by_name["Evaluate"].attributes["policyd.adapter"] == "http"


async def test_callers_without_the_token(watched: Watched) -> None:
    """A wrong token that callers send is in no line and in no span."""
    url = f"http://{watched.policyd.http}/v1/check{CHAT}"
    headers = {"x-usagepanda-api-key": watched.key, "x-policyd-token": WRONG}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=BODY, headers=headers) as response,
    ):
        assert response.status == 401
    for address in (watched.policyd.grpc, watched.policyd.admin):
        async with grpc.aio.insecure_channel(address) as channel:
            ask: Any = channel.unary_unary("/policyd.v1.PolicyService/Evaluate")
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(b"", metadata=(("authorization", f"Bearer {WRONG}"),), timeout=PATIENCE)


@pytest.mark.slow
def test_a_database_that_is_away(tmp_path: Path) -> None:
    """The password in the database's URL is in no line that says so, in text or JSON."""
    url = "postgresql+psycopg://policyd:hunter22@127.0.0.1:1/policyd"
    for form in FORMATS:
        command = [str(BIN / "policyd"), "serve", "--database-url", url, "--log-format", form]
        places = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-level", "debug")
        with subprocess.Popen(
            [*command, *places], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment()
        ) as server:
            assert server.stderr is not None
            lines = []
            for line in server.stderr:
                lines.append(line)
                if "no decision can be made" in line:
                    server.terminate()
        assert any("no decision can be made" in line for line in lines)
        assert "hunter22" not in "".join(lines)


@pytest.mark.slow
async def test_an_upstream_that_is_away(watched: Watched, unused_port: Any) -> None:
    """The line that says so names the request, its decision and its trace; the spans of the gateway
    and of the upstream are failures, and those of policyd are not."""
    flags = ("--log-format", "json", "--access-log", "--traces", watched.collector.url)
    token = ("--policyd-token-file", str(watched.policyd.folder / "token"))
    away = f"http://127.0.0.1:{unused_port()}"
    gateway = Gateway(watched.policyd.grpc, away, *flags, *token, "--policy-timeout", "30")
    try:
        assert await watched._replace(gateway=gateway).ask(12) == 502
        by_name = {span.name: span for span in watched.spans(12, 7)}
        [line] = watched.lines(gateway, "gateway", trace(12))
        [access] = watched.lines(gateway, "access", trace(12))
    finally:
        assert gateway.stop() == 0
    assert line["event"].startswith(f"no answer from upstream to POST {CHAT}: ")
    assert (line["level"], line["method"], line["path"]) == ("warning", "POST", CHAT)
    assert line["status"] == access["status"] == 502
    assert line["decision_id"] == access["decision_id"]
    assert line["api_key_id"] == access["api_key_id"]
    assert (access["by"], access["ending"]) == ("gateway", "no_answer")
    failed = {
        name: span.attributes["error.type"] for name, span in by_name.items() if span.is_error
    }
    assert failed == {"POST chat_completion": "502", "chat gpt-4o": "no_answer"}


async def test_batches(watched: Watched) -> None:
    """Requests that travel to policyd in one call keep a trace each."""
    numbers = range(32, 48)
    assert set(await asyncio.gather(*map(watched.ask, numbers))) == {200}
    for number in numbers:
        spans = {span.name: span for span in watched.spans(number, 7)}
        assert set(spans) == NAMES
        assert spans["Evaluate"].parent_id == spans["ask"].span_id
        assert spans["decide"].parent_id == spans["log"].parent_id == spans["Evaluate"].span_id


@pytest.mark.slow
async def test_a_collector_that_hangs(watched: Watched) -> None:
    """Requests are answered as before while the collector takes nothing."""
    watched.collector.answers.clear()
    try:
        for number in range(64, 84):
            assert await watched.ask(number) == 200
    finally:
        watched.collector.answers.set()
    watched.spans(83, 7)
