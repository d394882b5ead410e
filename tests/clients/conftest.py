"""A policyd and a gateway before a demo upstream, and API keys of every kind."""

from collections.abc import Iterator

import pytest
import trustme

from policyd.engine.policy import parse_setting
from policyd.policies import TABLE
from tests.support.processes import Policyd
from tests.support.stack import Background, Gateway, Upstream, Wire


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    with Background() as loop:
        yield loop


@pytest.fixture(autouse=True, scope="session")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every client loads the authorities that it trusts, though none speaks TLS here: let that be
    one instead of all there are, which takes longer than what the test is about."""
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def running_upstream(background: Background) -> Iterator[Upstream]:
    with Upstream(background) as running:
        yield running


@pytest.fixture
def upstream(running_upstream: Upstream) -> Iterator[Upstream]:
    """The demo upstream, with an empty record."""
    running_upstream.forget()
    yield running_upstream
    running_upstream.let_go()


@pytest.fixture(scope="session")
def gateway(policyd: Policyd, running_upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that waits for policyd longer than any machine should take."""
    server = Gateway(policyd.grpc, running_upstream.url, "--policy-timeout", "30")
    yield server
    assert server.stop() == 0, server.errors
    assert not server.errors


@pytest.fixture
def wire(background: Background, gateway: Gateway) -> Iterator[Wire]:
    """The way to the gateway, which counts every request."""
    with Wire(background, gateway.url) as counting:
        yield counting


@pytest.fixture(scope="session")
def user_alone(policyd: Policyd) -> str:
    """An API key that enforces user IDs, and does not accept safety_identifier."""
    return policyd.create_key("enforce", accept="user")


@pytest.fixture(scope="session")
def limited(policyd: Policyd) -> str:
    """An API key that enforces no more than 500 tokens."""
    setting = parse_setting(TABLE.by_name["max_tokens"], "enforce:500")
    return policyd.create_key("off", policies=(("max_tokens", setting),))
