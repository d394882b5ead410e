"""Why the gateway does not reach policyd: the cause and the fix, by what an attempt shows."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.diagnosis import ask
from gateway.settings import Settings
from policyd.command.address import Address
from policyd.errors import NoDecision
from tests.gateway.test_process import FREE
from tests.support.processes import Policyd, Program
from tests.support.running import LOCAL, beside


@contextmanager
def server(context: ssl.SSLContext | None) -> Iterator[str]:
    """The address of a server that takes connections, speaks TLS if told to, and says nothing."""
    listening = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve() -> None:
        while True:
            try:
                taken = listening.accept()[0]
            except OSError:
                return
            taken.settimeout(5)
            with suppress(OSError):
                held.append(context.wrap_socket(taken, server_side=True) if context else taken)
                held[-1].recv(1)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    for thread in threads:
        thread.join(10)  # It may be about to hold one more.
    for one in held:
        one.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """What a server with a certificate of that authority speaks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    return context


async def why(policyd: str, **more: Any) -> str:
    """What is said where the gateway does not reach policyd."""
    with pytest.raises(NoDecision) as caught:
        await ask(Settings(policyd=policyd, **more))
    return str(caught.value)


async def test_nothing_listens() -> None:
    """No program has the port."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    assert f"no program listens at {address}: start policyd there" in await why(address)


async def test_a_name_without_an_address() -> None:
    """--policyd has a name that does not resolve."""
    assert "stands for no address: correct --policyd" in await why("no-such-host.invalid:1")


@pytest.mark.slow
async def test_something_else_listens() -> None:
    """A server that is no policyd."""
    with server(None) as address:
        assert f"{address} takes connections, and did not answer as policyd" in await why(address)


async def test_tls_is_missing(tls: ssl.SSLContext) -> None:
    """policyd speaks TLS, and the gateway does not."""
    with server(tls) as address:
        assert f"{address} speaks TLS: give --policyd-tls" in await why(address)


async def test_tls_is_too_much(policyd: Policyd) -> None:
    """The gateway speaks TLS, and policyd does not."""
    told = await why(policyd.grpc, policyd_tls=True)
    assert f"{policyd.grpc} speaks no TLS: leave out --policyd-tls" in told


async def test_an_unknown_authority(tls: ssl.SSLContext) -> None:
    """policyd's certificate is not trusted."""
    with server(tls) as address:
        assert "give --policyd-ca its authority" in await why(address, policyd_tls=True)


async def test_a_certificate_is_asked_for(
    authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    """policyd has --tls-client-ca, and the gateway shows no certificate."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(asking)
    authority.configure_trust(asking)
    asking.verify_mode = ssl.CERT_REQUIRED
    with server(asking) as address:
        told = await why(address, policyd_tls=True, policyd_ca=tmp_path / "ca.pem")
    assert "give --policyd-cert and --policyd-key" in told


async def test_tokens(tmp_path: Path) -> None:
    """policyd asks for a token, and is shown none, another or the right one."""
    (tmp_path / "token").write_text("the-right-token-of-them\n")
    (tmp_path / "token").chmod(0o600)
    with beside(tmp_path, caller_token_file=tmp_path / "token") as running:
        grpc = str(running.grpc)
        assert "was shown no token" in await why(grpc)
        told = await why(grpc, policyd_token="another")
        assert "give --policyd-token-file the file that policyd has as --caller-token-file" in told
        assert "another-" not in told
        settings = Settings(policyd=grpc, policyd_token="the-right-token-of-them")
        assert not (await ask(settings)).in_force


# --- over HTTP -----------------------------------------------------------------------------------


async def test_nothing_listens_for_http() -> None:
    """No program has the port."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    told = await why(f"http://{address}")
    assert f"no program listens at {address}" in told
    assert told.endswith("give --policyd the address of its --http")


async def test_https_is_missing(tls: ssl.SSLContext) -> None:
    """policyd speaks TLS, and the gateway does not."""
    with server(tls) as address:
        told = await why(f"http://{address}")
    assert f"{address} speaks TLS: give https://{address} to --policyd" in told


async def test_https_is_too_much(policyd: Policyd) -> None:
    """The gateway speaks TLS, and policyd does not."""
    told = await why(f"https://{policyd.http}")
    assert f"{policyd.http} speaks no TLS: give http://{policyd.http} to --policyd" in told


async def test_an_unknown_authority_of_https(tls: ssl.SSLContext) -> None:
    """policyd's certificate is not trusted."""
    with server(tls) as address:
        assert "give --policyd-ca its authority" in await why(f"https://{address}")


async def test_the_port_of_grpc(policyd: Policyd) -> None:
    """The address is that of policyd's --grpc."""
    told = await why(f"http://{policyd.grpc}")
    assert "check that --policyd is the address of its --http" in told


async def test_the_port_of_http(policyd: Policyd) -> None:
    """The address is that of policyd's --http, and is asked over gRPC."""
    told = await why(policyd.http)
    assert "check that --policyd is the address of its --grpc" in told


async def test_tokens_over_http(tmp_path: Path) -> None:
    """policyd asks for a token, and is shown none."""
    (tmp_path / "token").write_text("the-right-token-of-them\n")
    (tmp_path / "token").chmod(0o600)
    with beside(tmp_path, caller_token_file=tmp_path / "token", http=LOCAL) as running:
        assert "was shown no token" in await why(f"http://{running.http}")


def wait_for(gateway: Program, words: str) -> None:
    """Wait until the gateway has logged the words."""
    until = time.monotonic() + 60
    while not any(words in line for line in gateway.errors):
        assert time.monotonic() < until, gateway.errors
        time.sleep(0.05)


@pytest.mark.slow
def test_a_gateway_starts_without_policyd(tmp_path: Path) -> None:
    """The gateway logs when it starts that policyd does not answer and why, and later that it
    does."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    gateway = Program(
        *("policyd-gateway", "serve", "--listen", FREE, "--policyd", address, "--drain", "0"),
        ready=r"policyd-gateway is ready",
    )
    try:
        wait_for(gateway, "policyd does not decide yet: no program listens")
        with beside(tmp_path, grpc=Address.parse(address, "--grpc")):
            wait_for(gateway, "policyd answers now")
    finally:
        assert gateway.stop() == 0
