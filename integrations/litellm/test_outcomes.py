"""The outcomes that the hook reports, from a real LiteLLM proxy to a real policyd."""

import json
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from integrations.litellm.proxy import (
    CHAT_WITH_USER,
    ENFORCE,
    FOLDER,
    JSON,
    MASTER,
    LiteLLM,
    chat,
    send,
)
from tests.support.commands import invoke
from tests.support.conformance import Keys
from tests.support.ports import unused_port
from tests.support.processes import Policyd
from tests.support.stack import Upstream

# LiteLLM takes seconds to start, and the first requests take it seconds, too.
pytestmark = pytest.mark.timeout(600)

STREAM = CHAT_WITH_USER[:-1] + b',"stream":true}'


def entries(policyd: Policyd) -> list[dict[str, Any]]:
    """The decision log, newest first."""
    done = invoke("policyd", "logs", "list", "--json", "--database-url", policyd.database_url)
    return [json.loads(line) for line in done.stdout.splitlines()]


def last(policyd: Policyd) -> str:
    """The ID of the newest entry; "" where there is none."""
    return next((one["id"] for one in entries(policyd)), "")


def newest(policyd: Policyd, before: str) -> dict[str, Any]:
    """The newest entry, once it has another ID than `before`, and an outcome."""
    until = time.monotonic() + 60
    while not (found := entries(policyd)) or found[0]["id"] == before or not found[0]["ending"]:
        assert time.monotonic() < until, found[:1]
        time.sleep(0.2)
    return found[0]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT_WITH_USER),
        ("/v1/chat/completions", STREAM),
        ("/v1/responses", b'{"model":"gpt-4o-mini","input":"hi","user":"alice"}'),
        (
            "/v1/messages",
            b'{"model":"gpt-4o-mini","max_tokens":5,"metadata":{"user_id":"alice"},'
            b'"messages":[{"role":"user","content":"hi"}]}',
        ),
    ],
    ids=["chat", "stream", "responses", "messages"],
)
def test_an_answer(
    policyd: Policyd,
    proxy: LiteLLM,
    keys: Keys,
    upstream: Upstream,
    path: str,
    body: bytes,
) -> None:
    """Status, time, model, tokens and so the cost are known."""
    before = last(policyd)
    key = ("x-usagepanda-api-key", keys.secret(ENFORCE))
    assert send(proxy, path, body, [key]).status == 200
    found = newest(policyd, before)
    ending = "unknown" if body is STREAM else "complete"
    assert (found["ending"], found["upstream_status"]) == (ending, 200)
    assert found["answer_model"] == "gpt-4o-mini"
    assert found["duration_ms"] > 0
    assert found["input_tokens"] > 0
    assert found["output_tokens"] > 0
    assert float(found["cost_usd"]) > 0
    assert (found["first_byte_ms"] is not None) == (body is STREAM)
    assert found["openai_id"].startswith("chatcmpl-") == path.endswith("/completions")


def test_a_client_that_leaves(
    policyd: Policyd, proxy: LiteLLM, keys: Keys, upstream: Upstream
) -> None:
    """A stream that is not read to its end has no ending, because LiteLLM does not report one."""
    before = last(policyd)
    upstream.hold()
    leaving = HTTPConnection(urlsplit(proxy.url).netloc, timeout=60)
    key = ("x-usagepanda-api-key", keys.secret(ENFORCE))
    leaving.request("POST", "/v1/chat/completions", STREAM, dict([MASTER, JSON, key]))
    answer = leaving.getresponse()
    assert answer.read1(1)
    answer.close()
    leaving.close()
    try:
        assert newest(policyd, before)["ending"] == "unknown"
    finally:
        upstream.let_go()


def test_an_upstreams_error(
    policyd: Policyd, proxy: LiteLLM, keys: Keys, upstream: Upstream
) -> None:
    """A failed request has no outcome, even once a later request has one."""
    before = last(policyd)
    key = keys.secret(ENFORCE)
    body = b'{"model":"gpt-4o-mini","messages":5,"user":"alice"}'
    assert chat(proxy, key, body).status >= 400
    assert chat(proxy, key, CHAT_WITH_USER).status == 200
    newest(policyd, before)
    assert entries(policyd)[1]["ending"] is None


def test_an_answer_out_of_the_cache(
    policyd: Policyd, keys: Keys, upstream: Upstream, tmp_path: Path
) -> None:
    """An answer from LiteLLM's cache has no outcome, so its tokens cost nothing."""
    config = yaml.safe_load((FOLDER / "config.yaml").read_text())
    config["litellm_settings"] |= {"cache": True, "cache_params": {"type": "local"}}
    (tmp_path / "policyd_hook.py").symlink_to(FOLDER / "policyd_hook.py")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    env = {"POLICYD_TARGET": policyd.grpc, "POLICYD_TIMEOUT": "30"}
    caching = LiteLLM(file, unused_port(), upstream.url, env)
    try:
        upstream.forget()
        before = last(policyd)
        key = keys.secret(ENFORCE)
        for number, content in enumerate(("once", "once", "another"), 1):
            body = {
                **json.loads(CHAT_WITH_USER),
                "messages": [{"role": "user", "content": content}],
            }
            assert chat(caching, key, json.dumps(body).encode()).status == 200
            if number != 2:
                before = newest(policyd, before)["id"]
        assert len(upstream.received) == 2
        assert [one["ending"] for one in entries(policyd)[:3]] == ["complete", None, "complete"]
    finally:
        caching.stop()
