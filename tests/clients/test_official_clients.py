"""OpenAI's own clients, of Usage Panda's day and of today, against a real gateway and policyd.

Today's takes a second to load, which only the process that runs these tests spends.
"""

import importlib
import inspect
import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from policyd.decision_log.record import is_decision_id
from tests.support import requirements
from tests.support.processes import environment
from tests.support.stack import Gateway, Upstream, Wire

HERE = Path(__file__).parent
MESSAGE = "Usage Panda: Config set to block requests without user field"
LIMITED = "Usage Panda: Config set to max tokens of: 500; request was: 501"
ERROR = {"message": MESSAGE, "type": "invalid_request", "param": None, "code": None}
HELLO = [{"role": "user", "content": "Hello there"}]
PNG = ("image.png", b"\x89PNG\r\n\x1a\n", "image/png")

Call = Callable[..., Any]
CALLS: dict[str, Call] = {
    "completions": lambda client, **more: client.completions.create(
        model="gpt-3.5-turbo-instruct", prompt="Hello there", **more
    ),
    "chat": lambda client, **more: client.chat.completions.create(
        model="gpt-4o-mini", messages=HELLO, **more
    ),
    "responses": lambda client, **more: client.responses.create(
        model="gpt-4o-mini", input="Hello there", **more
    ),
    "embeddings": lambda client, **more: client.embeddings.create(
        model="text-embedding-3-small", input="Hello there", **more
    ),
    "images.generate": lambda client, **more: client.images.generate(
        model="gpt-image-1", prompt="a panda", **more
    ),
    "images.edit": lambda client, **more: client.images.edit(
        model="gpt-image-1", image=PNG, prompt="a panda", **more
    ),
    "images.create_variation": lambda client, **more: client.images.create_variation(
        image=PNG, **more
    ),
}
TOKEN_LIMITS = {
    "completions": "max_tokens",
    "chat": "max_completion_tokens",
    "responses": "max_output_tokens",
}
STREAMS = ["completions", "chat", "responses"]
DEPRECATED = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
every_call = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=DEPRECATED if name == "images.create_variation" else ())
        for name in CALLS
    ],
)
every_stream = pytest.mark.parametrize("name", STREAMS)


def package() -> Any:
    """The client of today."""
    return importlib.import_module("openai")


def new_client(kind: str, wire: Wire, key: str) -> Any:
    """A client of today, with its own defaults, that sends `key`."""
    headers = {"x-usagepanda-api-key": key}
    return getattr(package(), kind)(
        api_key="sk-any", base_url=f"{wire.url}/v1", default_headers=headers
    )


@pytest.fixture(params=["OpenAI", "AsyncOpenAI"])
def make_client(request: pytest.FixtureRequest, wire: Wire) -> Callable[[str], Any]:
    """Makes a synchronous or an asynchronous client that sends the given key."""
    return partial(new_client, request.param, wire)


async def outcome(client: Any, call: Call, **more: Any) -> Any:
    """What a synchronous or asynchronous client returns; the client is closed then."""
    try:
        answer = call(client, **more)
        return await answer if inspect.isawaitable(answer) else answer
    finally:
        closed = client.close()
        if inspect.isawaitable(closed):
            await closed


async def denial(client: Any, call: Call, **more: Any) -> Any:
    """The exception that a denied call raises."""
    unprocessable = package().UnprocessableEntityError
    with pytest.raises(unprocessable) as caught:
        await outcome(client, call, **more)
    assert caught.type is unprocessable
    return caught.value


# The client of Usage Panda's day


class Server(Protocol):
    """A gateway, ours or another."""

    url: str


def old_python(program: str, gateway: Server, key: str) -> subprocess.CompletedProcess[str]:
    """Run a program that uses openai==0.27.8."""
    python = HERE.parents[1] / ".venv-openai-0.27/bin/python"
    requirements.file(python, "make test-all sets it up")
    env = environment({"GATEWAY": gateway.url, "USAGE_PANDA_KEY": key})
    command: list[str | Path] = [python, "-W", "ignore", "-c", program]
    return subprocess.run(command, capture_output=True, env=env, text=True, timeout=60, check=False)


@pytest.mark.clients
def test_the_documented_snippet(gateway: Gateway, upstream: Upstream, off: str) -> None:
    """The snippet ends with the documented exception, to the letter up to the date.

    Its header suffices.
    """
    done = old_python((HERE / "documented_snippet.py").read_text(), gateway, off)
    documented = (HERE / "documented_exception.txt").read_text()
    printed = done.stderr.splitlines()[-1]
    assert printed.partition("'Date'")[:2] == documented.partition("'Date'")[:2]
    assert done.returncode == 1
    assert not upstream.received


@pytest.mark.clients
def test_the_documented_snippet_with_user(gateway: Gateway, upstream: Upstream, off: str) -> None:
    """The snippet is answered once it names its user."""
    snippet = (HERE / "documented_snippet.py").read_text()
    named = snippet.replace('prompt="Hello there",', 'prompt="Hello there", user="alice",')
    done = old_python(f"{named}print(output)", gateway, off)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(upstream.received) == 1


OLD = (
    "import openai, os; gateway = os.environ['GATEWAY']; openai.api_base = gateway + '/v1'; "
    "openai.api_key = 'sk-any'; headers = {'x-usagepanda-api-key': os.environ['USAGE_PANDA_KEY']}; "
)
OLD_CALLS = {
    "an engine's chat": (
        "openai.ChatCompletion.create(engine='GPT-4o', messages=[], %s)",
        b"/v1/engines/GPT-4o/chat/completions",
    ),
    "an engine's embeddings": (
        "openai.Embedding.create(engine='ada', input='Hello', %s)",
        b"/v1/engines/ada/embeddings",
    ),
    "Azure's chat": (
        "openai.ChatCompletion.create(api_type='azure', api_version='1', api_base=gateway,"
        " deployment_id='GPT-4o', messages=[], %s)",
        b"/openai/deployments/GPT-4o/chat/completions?api-version=1",
    ),
}


@pytest.mark.parametrize(("call", "target"), OLD_CALLS.values(), ids=OLD_CALLS)
@pytest.mark.clients
def test_where_the_old_client_asks(
    gateway: Gateway, upstream: Upstream, enforcing: str, call: str, target: bytes
) -> None:
    """Whatever path the old client uses, it is denied without a user, and allowed with one."""
    program = OLD + call.replace("%s", "headers=headers, %s")
    denied = old_python(program.replace("%s", ""), gateway, enforcing)
    assert MESSAGE in denied.stderr
    assert not upstream.received
    old_python(program.replace("%s", "user='alice'"), gateway, enforcing)
    assert upstream.received[0].target == target


OLD_SAFETY = {
    "chat": "openai.ChatCompletion.create(model='m', messages=[], headers=headers, %s)",
    # It sends headers of its caller's on images only where they are its session's.
    "images": "import requests; openai.requestssession = requests.Session(); "
    "openai.requestssession.headers.update(headers); openai.Image.create(prompt='a panda', %s)",
}


@pytest.mark.parametrize("call", OLD_SAFETY.values(), ids=OLD_SAFETY)
@pytest.mark.clients
def test_the_old_clients_safety_identifier(
    gateway: Gateway, upstream: Upstream, enforcing: str, user_alone: str, call: str
) -> None:
    """The old client passes a safety_identifier on; it counts where the key accepts it."""
    named = call.replace("%s", "safety_identifier='alice'")
    denied = old_python(OLD + named, gateway, user_alone)
    assert MESSAGE in denied.stderr
    assert not upstream.received
    assert old_python(OLD + named, gateway, enforcing).returncode == 0
    assert json.loads(upstream.received[0].body)["safety_identifier"] == "alice"


@pytest.mark.clients
def test_the_old_clients_token_limit(gateway: Gateway, upstream: Upstream, limited: str) -> None:
    """The old client raises APIError, as for every 422, with the message that names both limits."""
    program = OLD + "openai.Completion.create(model='m', prompt='', headers=headers, max_tokens=%s)"
    denied = old_python(program.replace("%s", "501"), gateway, limited)
    assert f"APIError: {LIMITED} " in denied.stderr.splitlines()[-1]
    assert not upstream.received
    assert old_python(program.replace("%s", "500"), gateway, limited).returncode == 0


# Today's client for Python


@every_call
async def test_without_user(
    make_client: Call, enforcing: str, wire: Wire, upstream: Upstream, name: str
) -> None:
    """The client raises UnprocessableEntityError after one request, which is not forwarded."""
    error = await denial(make_client(enforcing), CALLS[name])
    assert error.status_code == 422
    assert is_decision_id(error.request_id or "")
    assert error.body == ERROR
    assert MESSAGE in str(error)
    assert wire.requests == 1
    assert not upstream.received


@every_stream
async def test_a_stream_without_user(
    make_client: Call, enforcing: str, wire: Wire, upstream: Upstream, name: str
) -> None:
    """A stream without a user is denied like any other request, before it begins."""
    error = await denial(make_client(enforcing), CALLS[name], stream=True)
    assert error.body == ERROR
    assert wire.requests == 1
    assert not upstream.received


@every_call
async def test_with_user(
    make_client: Call, enforcing: str, wire: Wire, upstream: Upstream, name: str
) -> None:
    """A request with a user is answered."""
    answer = await outcome(make_client(enforcing), CALLS[name], user="alice")
    assert answer.model_dump()
    assert wire.requests == 1
    assert len(upstream.received) == 1
    assert b"alice" in upstream.received[0].body


@every_stream
def test_a_stream_comes_chunk_by_chunk(
    wire: Wire, upstream: Upstream, enforcing: str, name: str
) -> None:
    """The client gets the first chunk before the upstream may send the second."""
    upstream.hold()
    with new_client("OpenAI", wire, enforcing) as client:
        stream = CALLS[name](client, user="alice", stream=True)
        first = next(stream)
        upstream.let_go()
        rest = list(stream)
    assert first
    assert len(rest) > 5
    assert wire.requests == 1


@every_stream
async def test_an_asynchronous_stream_comes_chunk_by_chunk(
    wire: Wire, upstream: Upstream, enforcing: str, name: str
) -> None:
    """The asynchronous client gets the first chunk before the upstream may send the second."""
    upstream.hold()
    async with new_client("AsyncOpenAI", wire, enforcing) as client:
        stream = await CALLS[name](client, user="alice", stream=True)
        first = await anext(stream)
        upstream.let_go()
        rest = [chunk async for chunk in stream]
    assert first
    assert len(rest) > 5
    assert wire.requests == 1


@every_call
async def test_the_header_switches_off(make_client: Call, enforcing: str, name: str) -> None:
    """With `false` in the header, an enforcing key allows the request."""
    headers = {"x-usagepanda-enforce-user-ids": "false"}
    assert await outcome(make_client(enforcing), CALLS[name], extra_headers=headers)


@every_call
async def test_the_header_switches_on(make_client: Call, off: str, name: str) -> None:
    """With `true` in the header, a key that does not enforce denies the request."""
    headers = {"x-usagepanda-enforce-user-ids": "true"}
    error = await denial(make_client(off), CALLS[name], extra_headers=headers)
    assert error.body == ERROR


@every_call
async def test_a_locked_key(make_client: Call, locked: str, upstream: Upstream, name: str) -> None:
    """A locked key denies the request, whatever the header says."""
    headers = {"x-usagepanda-enforce-user-ids": "false"}
    error = await denial(make_client(locked), CALLS[name], extra_headers=headers)
    assert error.body == ERROR
    assert not upstream.received


async def test_azures_client(
    gateway: Gateway, upstream: Upstream, enforcing: str, wire: Wire
) -> None:
    """A request of Azure's client is denied without a user.

    With one, its deployment's name is forwarded unchanged.
    """
    headers = {"x-usagepanda-api-key": enforcing}
    with package().AzureOpenAI(
        api_key="any", azure_endpoint=wire.url, api_version="1", default_headers=headers
    ) as client:
        create = client.chat.completions.create
        with pytest.raises(package().UnprocessableEntityError):
            create(model="GPT-4o-Prod", messages=HELLO)
        assert not upstream.received
        create(model="GPT-4o-Prod", messages=HELLO, user="alice")
    target = b"/openai/deployments/GPT-4o-Prod/chat/completions?api-version=1"
    assert [received.target for received in upstream.received] == [target]


@pytest.mark.parametrize("name", ["chat", "responses", "images.generate", "images.edit"])
async def test_a_safety_identifier(
    make_client: Call, enforcing: str, user_alone: str, name: str
) -> None:
    """A safety_identifier counts as a user, unless too long or not accepted by the key."""
    named = {"safety_identifier": "5" * 128}
    assert await outcome(make_client(enforcing), CALLS[name], **named)
    assert (await denial(make_client(user_alone), CALLS[name], **named)).body == ERROR
    long = {"safety_identifier": "5" * 129}
    assert (await denial(make_client(enforcing), CALLS[name], **long)).body == ERROR


@every_stream
async def test_a_token_limit(
    make_client: Call, limited: str, wire: Wire, upstream: Upstream, name: str
) -> None:
    """A token limit above the key's is denied with a message that names both, streams alike."""
    limit = TOKEN_LIMITS[name]
    for more in ({limit: 501}, {limit: 501, "stream": True}):
        error = await denial(make_client(limited), CALLS[name], **more)
        assert error.body["message"] == LIMITED
        assert is_decision_id(error.request_id or "")
    assert wire.requests == 2
    assert not upstream.received
    assert await outcome(make_client(limited), CALLS[name], **{limit: 500})


async def test_a_wrong_key(make_client: Call, wire: Wire, upstream: Upstream) -> None:
    """The client raises PermissionDeniedError after one request."""
    with pytest.raises(package().PermissionDeniedError) as caught:
        await outcome(make_client("up-wrong"), CALLS["chat"], user="alice")
    assert caught.value.type == "access_denied"
    assert is_decision_id(caught.value.request_id or "")
    assert wire.requests == 1
    assert not upstream.received
