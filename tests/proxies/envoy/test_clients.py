"""OpenAI's own clients, of Usage Panda's day and of today, through Envoy."""

import openai
import pytest

from tests.clients.test_official_clients import CALLS, ERROR, HERE, STREAMS, old_python
from tests.proxies.envoy.proxy import Envoy
from tests.support.stack import Upstream


@pytest.fixture
def client(envoy: Envoy, enforcing: str) -> openai.OpenAI:
    """A client of today, with its own defaults."""
    headers = {"x-usagepanda-api-key": enforcing}
    return openai.OpenAI(
        api_key="sk-any", base_url=f"{envoy.url}/v1", default_headers=headers, timeout=60
    )


def test_the_documented_snippet(envoy: Envoy, upstream: Upstream, off: str) -> None:
    """Under openai 0.27.8 the snippet raises the documented exception, but for its date."""
    done = old_python((HERE / "documented_snippet.py").read_text(), envoy, off)
    documented = (HERE / "documented_exception.txt").read_text()
    printed = done.stderr.splitlines()[-1]
    assert printed.partition("'Date'")[:2] == documented.partition("'Date'")[:2]
    assert done.returncode == 1
    assert not upstream.received


def test_the_documented_snippet_with_user(envoy: Envoy, upstream: Upstream, off: str) -> None:
    """The snippet is answered once it names its user."""
    snippet = (HERE / "documented_snippet.py").read_text()
    named = snippet.replace('prompt="Hello there",', 'prompt="Hello there", user="alice",')
    done = old_python(f"{named}print(output)", envoy, off)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(upstream.received) == 1


@pytest.mark.parametrize("name", [name for name in CALLS if name != "images.create_variation"])
def test_without_user(client: openai.OpenAI, upstream: Upstream, name: str) -> None:
    """The client of today raises UnprocessableEntityError, with the same text."""
    with client, pytest.raises(openai.UnprocessableEntityError) as caught:
        CALLS[name](client)
    assert caught.value.body == ERROR
    assert not upstream.received


@pytest.mark.parametrize("name", [name for name in CALLS if name != "images.create_variation"])
def test_with_user(client: openai.OpenAI, upstream: Upstream, name: str) -> None:
    """A request with a user is answered."""
    with client:
        assert CALLS[name](client, user="alice").model_dump()
    assert len(upstream.received) == 1


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_comes_chunk_by_chunk(
    client: openai.OpenAI, upstream: Upstream, name: str
) -> None:
    """The client gets the first chunk before the upstream may send the second."""
    upstream.hold()
    with client:
        stream = CALLS[name](client, user="alice", stream=True)
        first = next(stream)
        upstream.let_go()
        rest = list(stream)
    assert first
    assert len(rest) > 5


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_without_user(client: openai.OpenAI, upstream: Upstream, name: str) -> None:
    """A stream without a user is denied before it begins."""
    with client, pytest.raises(openai.UnprocessableEntityError) as caught:
        CALLS[name](client, stream=True)
    assert caught.value.body == ERROR
    assert not upstream.received
