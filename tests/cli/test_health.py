"""`policyd health` and `policyd-gateway health`, as a container's probes run them."""

from pathlib import Path

import pytest
import trustme

from tests.support.commands import invoke
from tests.support.processes import Policyd, Program

pytestmark = pytest.mark.slow
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def tls(tmp_path: Path) -> tuple[str, ...]:
    """The flags of a certificate, which the authority in ca.pem has issued."""
    authority = trustme.CA()
    issued = authority.issue_cert("policyd.internal")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))


def test_of_policyd(tmp_path: Path, tls: tuple[str, ...]) -> None:
    """`policyd health` asks over TLS, and shows the server's certificate if callers must show
    one."""
    wanted = (*tls, "--tls-client-ca", str(tmp_path / "ca.pem"))
    policyd = Policyd(tmp_path, "--http", "127.0.0.1:0", *wanted)
    for more in ((), ("--live",)):
        done = invoke("policyd", "health", "--http", policyd.http, *tls, *more)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b'"state"' in done.stdout
    assert invoke("policyd", "health", "--http", policyd.http).returncode == 1
    assert policyd.stop() == 0
    done = invoke("policyd", "health", "--http", policyd.http, *tls)
    assert done.returncode == 1
    assert b"does not answer" in done.stderr


def test_of_policyd_without_http() -> None:
    """Without --http there is no place to ask."""
    done = invoke("policyd", "health")
    assert done.returncode == 2
    assert b"--http" in done.stderr


def test_of_the_gateway(tls: tuple[str, ...]) -> None:
    """A gateway that can reach no policyd lives, and is not ready."""
    gateway = Program(
        *("policyd-gateway", "serve", "--listen", "0.0.0.0:0", "--policyd", NOWHERE),
        *(*tls, "--drain", "0"),
        ready=r"is ready: https://(\S+)",
    )
    health = ("policyd-gateway", "health", "--listen", gateway.match[1], *tls)
    assert invoke(*health, "--live").returncode == 0
    done = invoke(*health)
    assert done.returncode == 1
    assert b"not ready" in done.stderr
    gateway.stop()
