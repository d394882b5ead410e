"""Envoy's access log: policyd's log has the outcome of each request that it allowed."""

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.proxies.envoy.proxy import Envoy, access_log, ext_authz
from tests.proxies.envoy.test_envoy import JSON, ask, last_log
from tests.support.commands import logged, logged_with_outcome
from tests.support.envoy_checks import CHAT, CHAT_WITH_USER, KEY, PATH
from tests.support.processes import Policyd
from tests.support.stack import Upstream


def with_outcome(policyd: Policyd, envoy: Envoy, line: int) -> dict[str, Any]:
    """policyd's entry of the request in a line of Envoy's log, once it has an outcome."""
    decision_id = last_log(envoy, line)["policyd"]["decision_id"]
    return logged_with_outcome(policyd.database_url, decision_id)


def test_an_answer(policyd: Policyd, envoy: Envoy, upstream: Upstream, enforcing: str) -> None:
    """The answer's status, times, ID and organization are known; its tokens are not."""
    before = len(envoy.log)
    assert ask(envoy, enforcing, CHAT_WITH_USER, JSON).status == 200
    found = with_outcome(policyd, envoy, before)
    assert (found["ending"], found["upstream_status"]) == ("complete", 200)
    assert 0 < found["first_byte_ms"] <= found["duration_ms"]
    assert found["openai_id"].startswith("req_")
    assert found["answer_organization"] == "policyd-demo"
    assert found["input_tokens"] is found["output_tokens"] is found["cost_usd"] is None


def test_a_denial_has_none(
    policyd: Policyd, envoy: Envoy, upstream: Upstream, enforcing: str
) -> None:
    """A denied request has no outcome, even after that of a later one has come."""
    before = len(envoy.log)
    assert ask(envoy, enforcing, CHAT, JSON).status == 422
    denied = last_log(envoy, before)["policyd"]["decision_id"]
    ask(envoy, enforcing, CHAT_WITH_USER, JSON)
    with_outcome(policyd, envoy, before + 1)
    assert logged(policyd.database_url, denied)["ending"] is None


def test_a_client_that_leaves(
    policyd: Policyd, envoy: Envoy, upstream: Upstream, enforcing: str
) -> None:
    """The log distinguishes a stream that its client left from one that ended whole."""
    before = len(envoy.log)
    upstream.hold()
    leaving = http.client.HTTPConnection(urlsplit(envoy.url).netloc, timeout=60)
    body = json.dumps({**json.loads(CHAT_WITH_USER), "stream": True})
    leaving.request("POST", PATH, body, {KEY: enforcing, "Content-Type": "application/json"})
    answer = leaving.getresponse()
    assert answer.read1(1)
    answer.close()
    leaving.close()
    found = with_outcome(policyd, envoy, before)
    assert (found["ending"], found["upstream_status"]) == ("client_left", 200)
    assert found["first_byte_ms"] <= found["duration_ms"]


def test_no_answer(
    policyd: Policyd,
    config: Callable[..., Any],
    start: Callable[..., Envoy],
    unused_port: Callable[[], int],
    enforcing: str,
) -> None:
    """Where the upstream is down, the outcome has no status: the client's 502 is Envoy's own."""
    envoy = start(config(upstream=f"https://127.0.0.1:{unused_port()}"))
    assert ask(envoy, enforcing, CHAT_WITH_USER, JSON).status == 502
    found = with_outcome(policyd, envoy, 0)
    assert (found["ending"], found["upstream_status"]) == ("no_answer", None)
    assert found["first_byte_ms"] is None


def test_the_callers_token(
    config: Callable[..., Any], start: Callable[..., Envoy], tmp_path: Path, upstream: Upstream
) -> None:
    """With initial_metadata Envoy shows policyd the token, for checks and for the log, whose open
    stream does not keep policyd from stopping."""
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length-0123456789\n")
    file.chmod(0o600)
    unguarded = Policyd(tmp_path)
    key = unguarded.create_key("off")
    assert unguarded.stop() == 0
    unguarded = Policyd(tmp_path)
    key = unguarded.create_key("off")
    assert unguarded.stop() == 0
    guarded = Policyd(tmp_path, "--caller-token-file", str(file))
    made = config(at=guarded.grpc)
    shown = {"key": "authorization", "value": f"Bearer {file.read_text().strip()}"}
    for calls in (ext_authz(made), access_log(made)):
        calls["grpc_service"]["initial_metadata"] = [shown]
    try:
        envoy = start(made)
        assert ask(envoy, key, CHAT, JSON).status == 200
        assert with_outcome(guarded, envoy, 0)["ending"] == "complete"
    finally:
        assert guarded.stop() == 0, guarded.errors
    assert "Traceback" not in "".join(guarded.errors)
