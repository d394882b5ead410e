"""The Vercel AI SDK with its provider for OpenAI, against a real gateway and policyd."""

import json
import subprocess
from typing import Any

import pytest

from tests.clients.test_node_client import NODE
from tests.support import requirements
from tests.support.processes import environment
from tests.support.stack import Upstream, Wire

NO_USER = "Usage Panda: Config set to block requests without user field"
LIMITED = "Usage Panda: Config set to max tokens of: 500; request was: 501"
ANSWERED = {"answered": True}
pytestmark = pytest.mark.clients
every_method = pytest.mark.parametrize("method", ["chat", "responses", "images"])


def ask(wire: Wire, key: str, method: str, settings: dict[str, Any], **options: str) -> Any:
    """The result of a call with the SDK's `settings` and its provider's `options`."""
    node = requirements.program("node", "nodejs")
    requirements.file(NODE / "node_modules/ai", "make test-all installs it with npm")
    parameters = json.dumps({**settings, "options": options})
    command = [node, str(NODE / "ask_vercel.mjs"), f"{wire.url}/v1", key, method, parameters]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def denied(message: str) -> dict[str, Any]:
    """What the SDK throws for a denial: it does not try again."""
    return {
        "name": "AI_APICallError",
        "statusCode": 422,
        "message": message,
        "isRetryable": False,
    }


@every_method
def test_identifiers(
    wire: Wire, upstream: Upstream, enforcing: str, user_alone: str, method: str
) -> None:
    """A user and a safety identifier pass; a call with none, or with one that does not count, is
    sent once and denied."""
    assert ask(wire, enforcing, method, {}) == denied(NO_USER)
    assert ask(wire, user_alone, method, {}, safetyIdentifier="alice") == denied(NO_USER)
    assert wire.requests == 2
    assert not upstream.received
    assert ask(wire, enforcing, method, {}, user="alice") == ANSWERED
    assert ask(wire, enforcing, method, {}, safetyIdentifier="alice") == ANSWERED
    assert json.loads(upstream.received[-1].body)["safety_identifier"] == "alice"


@pytest.mark.parametrize("method", ["chat", "responses"])
def test_a_token_limit(wire: Wire, upstream: Upstream, limited: str, method: str) -> None:
    """A token limit above the key's is denied with a message that names both."""
    assert ask(wire, limited, method, {"maxOutputTokens": 501}) == denied(LIMITED)
    assert not upstream.received
    assert ask(wire, limited, method, {"maxOutputTokens": 500}) == ANSWERED
