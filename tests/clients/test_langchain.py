"""LangChain's chat model for OpenAI, against a real gateway and policyd."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import requirements
from tests.support.processes import environment
from tests.support.stack import Upstream, Wire

PYTHON = Path(__file__).parents[2] / ".venv-langchain/bin/python"
NO_USER = "Usage Panda: Config set to block requests without user field"
LIMITED = "Usage Panda: Config set to max tokens of: 500; request was: 501"
METHODS = {"chat": b"/v1/chat/completions", "responses": b"/v1/responses"}
pytestmark = pytest.mark.clients
every_method = pytest.mark.parametrize("method", METHODS)

PROGRAM = """
import json, sys
from langchain_openai import ChatOpenAI
from openai import UnprocessableEntityError
base_url, key, method, calls = sys.argv[1:]
for settings in json.loads(calls):
    model = ChatOpenAI(
        model="gpt-4o-mini", api_key="sk-any", base_url=base_url,
        default_headers={"x-usagepanda-api-key": key},
        use_responses_api=method == "responses", **settings,
    )
    try:
        model.invoke("Hello there")
        print(json.dumps("answered"))
    except UnprocessableEntityError as error:
        print(json.dumps(error.body["message"]))
"""


def outcomes(wire: Wire, key: str, method: str, *calls: dict[str, Any]) -> list[str]:
    """Of each call, which `ChatOpenAI` makes with these settings: "answered", or the message of its
    UnprocessableEntityError."""
    requirements.file(PYTHON, "make test-all installs LangChain")
    command = [str(PYTHON), "-c", PROGRAM, f"{wire.url}/v1", key, method, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def with_identifier(**identifier: str) -> dict[str, Any]:
    """Settings that send this identifier."""
    return {"model_kwargs": identifier}


@every_method
def test_identifiers(
    wire: Wire, upstream: Upstream, enforcing: str, user_alone: str, method: str
) -> None:
    """A user and a safety_identifier pass; a call with none, or a longer one, is asked once."""
    user, safe = with_identifier(user="alice"), with_identifier(safety_identifier="5" * 128)
    long = with_identifier(safety_identifier="5" * 129)
    assert outcomes(wire, user_alone, method, safe) == [NO_USER]
    assert outcomes(wire, enforcing, method, {}, long) == [NO_USER, NO_USER]
    assert not upstream.received
    assert wire.requests == 3
    assert outcomes(wire, enforcing, method, user, safe) == ["answered", "answered"]
    assert [received.target for received in upstream.received] == 2 * [METHODS[method]]


@every_method
def test_a_token_limit(wire: Wire, upstream: Upstream, limited: str, method: str) -> None:
    """A token limit above the key's is denied with a message that names both."""
    calls = {"max_tokens": 501}, {"max_tokens": 500}
    assert outcomes(wire, limited, method, *calls) == [LIMITED, "answered"]
    assert len(upstream.received) == 1
