"""OpenAI's client for Node, against a real gateway and policyd."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import requirements
from tests.support.processes import environment
from tests.support.stack import Upstream, Wire

NODE = Path(__file__).parent / "node"
MESSAGE = "Usage Panda: Config set to block requests without user field"
CALLS: dict[str, dict[str, Any]] = {
    "completions.create": {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello there"},
    "chat.completions.create": {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Hello there"}],
    },
    "responses.create": {"model": "gpt-4o-mini", "input": "Hello there"},
    "embeddings.create": {"model": "text-embedding-3-small", "input": "Hello there"},
    "images.generate": {"model": "gpt-image-1", "prompt": "a panda"},
    "images.edit": {"model": "gpt-image-1", "prompt": "a panda", "image": "PNG"},
}
STREAMS = ["completions.create", "chat.completions.create", "responses.create"]
pytestmark = pytest.mark.clients
every_call = pytest.mark.parametrize("method", CALLS)
every_stream = pytest.mark.parametrize("method", STREAMS)


def command(wire: Wire, key: str, method: str, **more: Any) -> list[str]:
    """The command that makes one call."""
    node = requirements.program("node", "nodejs")
    requirements.file(NODE / "node_modules/openai", "make test-all installs it with npm")
    parameters = json.dumps(CALLS[method] | more)
    return [node, str(NODE / "ask.mjs"), f"{wire.url}/v1", key, method, parameters]


def ask(wire: Wire, key: str, method: str, **more: Any) -> list[dict[str, Any]]:
    """The result of a call."""
    done = subprocess.run(
        command(wire, key, method, **more),
        capture_output=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_denial(printed: list[dict[str, Any]], message: str = MESSAGE) -> bool:
    """Whether the call failed as docs/contract.md, section 4, states."""
    error = {
        "class": "UnprocessableEntityError",
        "status": 422,
        "message": f"422 {message}",
        "type": "invalid_request",
    }
    return printed == [error]


@every_call
def test_without_user(wire: Wire, upstream: Upstream, enforcing: str, method: str) -> None:
    """The client throws UnprocessableEntityError after one request, which is not forwarded."""
    assert is_denial(ask(wire, enforcing, method))
    assert wire.requests == 1
    assert not upstream.received


@every_stream
def test_a_stream_without_user(wire: Wire, upstream: Upstream, enforcing: str, method: str) -> None:
    """A stream without a user is denied like any other request, before it begins."""
    assert is_denial(ask(wire, enforcing, method, stream=True))
    assert wire.requests == 1
    assert not upstream.received


@every_call
def test_with_user(wire: Wire, upstream: Upstream, enforcing: str, method: str) -> None:
    """A request with a user is answered."""
    assert ask(wire, enforcing, method, user="alice") == [{"answered": True}]
    assert wire.requests == 1
    assert len(upstream.received) == 1


SAFETY = ["chat.completions.create", "responses.create", "images.generate", "images.edit"]


@pytest.mark.parametrize("method", SAFETY)
def test_a_safety_identifier(
    wire: Wire, upstream: Upstream, enforcing: str, user_alone: str, method: str
) -> None:
    """A safety_identifier counts as a user, unless too long or not accepted by the key."""
    named = {"safety_identifier": "5" * 128}
    assert is_denial(ask(wire, user_alone, method, **named))
    assert is_denial(ask(wire, enforcing, method, safety_identifier="5" * 129))
    assert not upstream.received
    assert ask(wire, enforcing, method, **named) == [{"answered": True}]


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("completions.create", "max_tokens"),
        ("chat.completions.create", "max_completion_tokens"),
        ("responses.create", "max_output_tokens"),
    ],
)
def test_a_token_limit(
    wire: Wire, upstream: Upstream, limited: str, method: str, limit: str
) -> None:
    """A token limit above the key's is denied with a message that names both."""
    message = "Usage Panda: Config set to max tokens of: 500; request was: 501"
    assert is_denial(ask(wire, limited, method, **{limit: 501}), message)
    assert not upstream.received
    assert ask(wire, limited, method, **{limit: 500}) == [{"answered": True}]


@every_stream
def test_a_stream_comes_chunk_by_chunk(
    wire: Wire, upstream: Upstream, enforcing: str, method: str
) -> None:
    """The client gets the first chunk before the upstream may send the second."""
    upstream.hold()
    words = command(wire, enforcing, method, user="alice", stream=True)
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment(), text=True) as node:
        assert node.stdout
        first = json.loads(node.stdout.readline())
        upstream.let_go()
        rest = [json.loads(line) for line in node.stdout]
    assert "chunk" in first
    assert len(rest) > 5
    assert rest[-1] == {"answered": True}
    assert wire.requests == 1
