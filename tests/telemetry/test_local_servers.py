"""Traces and access lines of a gateway that decides by itself: it tells what policyd and a gateway
that asks it tell together."""

import secrets
from collections.abc import Iterator

import pytest

from tests.support.collector import Collector
from tests.support.commands import logged
from tests.support.databases import migrated
from tests.support.load import MODE, keys
from tests.support.processes import Policyd
from tests.support.stack import Background, Gateway, Upstream
from tests.telemetry.test_servers import NAMES, SPAN, TRACE, Watched, trace


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, background: Background) -> Iterator[Watched]:
    """policyd has all that watches it, too: it has nothing to tell of these decisions."""
    folder = tmp_path_factory.mktemp("watched-local")
    token = folder / "local-token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(16))
    with Collector() as collector, Upstream(background) as upstream:
        shown = ("--log-format", "json", "--access-log", "--traces", collector.url)
        policyd = Policyd(migrated(folder), *shown, "--local-token-file", str(token))
        key = keys(policyd.database_url, "create", "test", *MODE, "enforce")["key"]
        deciding = ("--decide", "local", "--spool", str(folder / "gateway-spool"))
        gateway = Gateway(
            *(policyd.grpc, upstream.url, *shown, *deciding, "--policyd-token-file", str(token))
        )
        yield Watched(policyd, gateway, upstream, collector, key)
        assert gateway.stop() == 0, gateway.errors
        assert policyd.stop() == 0, policyd.errors
        assert not any('"logger": "access"' in line for line in policyd.errors)
        assert {span.service for span in collector.spans} == {"policyd-gateway"}


async def test_one_trace(watched: Watched) -> None:
    """Deciding and logging are spans of the gateway, under its step of asking, in its own time; no
    step calls another program but the upstream."""
    assert await watched.ask(1) == 200
    by_name = {span.name: span for span in watched.spans(1, 7)}
    assert set(by_name) == NAMES
    server, ask, evaluate = (by_name[one] for one in ("POST chat_completion", "ask", "Evaluate"))
    assert (server.parent_id, ask.parent_id) == (SPAN, server.span_id)
    assert evaluate.parent_id == ask.span_id
    assert by_name["decide"].parent_id == by_name["log"].parent_id == evaluate.span_id
    kinds = {name: span.kind for name, span in by_name.items() if span.kind != "INTERNAL"}
    assert kinds == {"POST chat_completion": "SERVER", "chat gpt-4o": "CLIENT"}
    assert not any(span.is_error for span in by_name.values())
    assert "rpc.system" not in ask.attributes
    for span in by_name.values():
        assert server.began <= span.began <= span.ended <= server.ended


async def test_attributes(watched: Watched) -> None:
    """The span of the decision tells what was decided, as policyd's does."""
    assert await watched.ask(2, user="no") == 422
    by_name = {span.name: span.attributes for span in watched.spans(2, 6)}
    server, evaluate = by_name["POST chat_completion"], by_name["Evaluate"]
    assert evaluate["policyd.adapter"] == "local"
    assert evaluate["policyd.verdict"] == server["policyd.verdict"] == "denied"
    assert evaluate["policyd.flags"] == "policy_enforce_user_ids"
    assert evaluate["policyd.decision_id"] == server["policyd.decision_id"]
    assert evaluate["policyd.api_key_id"] == server["policyd.api_key_id"]
    assert evaluate["policyd.trace_id"] == server["policyd.trace_id"] == trace(2)
    assert evaluate["policyd.revision"] > 0


async def test_the_parent_samples(watched: Watched) -> None:
    """A trace that is not sampled makes no span here either."""
    assert await watched.ask(3, traceparent=f"00-{trace(3)}-{SPAN}-00") == 200
    assert await watched.ask(4) == 200
    watched.spans(4, 7)
    assert not [span for span in watched.collector.spans if span.trace_id == trace(3)]


async def test_access_lines(watched: Watched) -> None:
    """A request has one line, with what a line of policyd would have told, and its decision is in
    policyd's log with the same trace."""
    assert await watched.ask(5, user="no") == 422
    [line] = watched.lines(watched.gateway, "access", trace(5))
    assert (line["method"], line["path"]) == ("POST", "/v1/chat/completions")
    assert (line["status"], line["by"], line["verdict"]) == (422, "policyd", "denied")
    assert line["operation"] == "chat_completion"
    assert line["flags"] == "policy_enforce_user_ids"
    assert line["api_key_id"].startswith("key_")
    assert line["trace_id"].startswith(TRACE[:-4])
    assert 0 < line["ask_seconds"] < line["seconds"]
    assert logged(watched.policyd.database_url, line["decision_id"])["trace_id"] == trace(5)
