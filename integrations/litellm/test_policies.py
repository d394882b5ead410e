"""What the hook tells policyd for the policies besides Enforce User IDs."""

import json
from typing import Any

import pytest

from integrations.litellm.proxy import LiteLLM, chat, send
from tests.support.conformance import Key, Keys
from tests.support.stack import Upstream

pytestmark = pytest.mark.timeout(600)
TOKENS = Key(mode="off", policies={"max_tokens": "enforce:500"})
CHARACTERS = Key(mode="off", policies={"max_prompt_chars": "enforce:11"})
MODELS = Key(mode="off", policies={"allowed_models": "enforce:gpt-4o-mini"})
BODY: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Hello there"}],
    "max_tokens": 500,
}
UNCERTAIN: list[dict[str, Any]] = [
    {"fallbacks": ["o1"]},
    {"fallbacks": [{"model": "o1", "max_tokens": 9000}]},
    {"context_window_fallbacks": [{"gpt-4o-mini": ["o1"]}]},
    {"router_settings_override": {"fallbacks": [{"gpt-4o-mini": ["o1"]}]}},
    {"extra_body": {"model": "o1", "max_completion_tokens": 9000}},
    {"additional_drop_params": ["max_tokens", "model", "messages"]},
    {"prompt_id": "a-prompt"},
]
every_key = pytest.mark.parametrize(
    ("key", "message"),
    [
        (TOKENS, "Config set to max tokens of: 500; request was: undefined"),
        (CHARACTERS, "Config set to max prompt chars of: 11; prompt was: undefined"),
        (MODELS, "Config set to block usage of model: undefined"),
    ],
    ids=["tokens", "characters", "models"],
)


@every_key
def test_what_it_states(
    proxy: LiteLLM, keys: Keys, upstream: Upstream, key: Key, message: str
) -> None:
    """A request within the limit goes upstream; one that may be replaced on the way does not."""
    upstream.forget()
    for more in UNCERTAIN:
        response = chat(proxy, keys.secret(key), json.dumps({**BODY, **more}).encode())
        assert response.status == 422, more
        assert json.loads(response.body)["error"]["message"] == f"Usage Panda: {message}"
    assert not upstream.received
    within = json.dumps({**BODY, "extra_body": {"seed": 1}}).encode()
    assert chat(proxy, keys.secret(key), within).status == 200
    assert len(upstream.received) == 1


def test_the_system_prompt_of_messages(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """Anthropic's `system` counts with the messages."""
    upstream.forget()
    headers = [("x-usagepanda-api-key", keys.secret(CHARACTERS))]
    body = json.dumps({**BODY, "system": "!"}).encode()
    denied = send(proxy, "/v1/messages", body, headers)
    assert denied.status == 422
    assert b"max prompt chars of: 11; prompt was: 12" in denied.body
    assert not upstream.received
    assert send(proxy, "/v1/messages", json.dumps(BODY).encode(), headers).status == 200


@pytest.mark.parametrize(("key", "status"), [(TOKENS, 422), (CHARACTERS, 422), (MODELS, 200)])
def test_generate_content(
    proxy: LiteLLM, keys: Keys, upstream: Upstream, key: Key, status: int
) -> None:
    """For Google's calls the hook knows the model, but neither limit nor prompt."""
    upstream.forget()
    body = b'{"contents":[{"role":"user","parts":[{"text":"Hello"}]}]}'
    headers = [("x-usagepanda-api-key", keys.secret(key))]
    target = "/v1beta/models/gpt-4o-mini:generateContent"
    assert send(proxy, target, body, headers).status == status
    assert bool(upstream.received) == (status == 200)


def test_realtime(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """LiteLLM sends a session's identifier nowhere, so a key that enforces denies the request."""
    upstream.forget()
    secret = [("x-usagepanda-api-key", keys.secret(Key(mode="enforce")))]
    headers = [*secret, ("OpenAI-Safety-Identifier", "alice")]
    body = b'{"session":{"type":"realtime"},"safety_identifier":"alice"}'
    for endpoint in ("client_secrets", "transcription_sessions"):
        assert send(proxy, f"/v1/realtime/{endpoint}", body, headers).status == 422
    assert not upstream.received
