"""TLS and caller authentication, with certificates of an authority made for the test."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from policyd.client import NoDecision, PolicyClient, tls_credentials
from policyd.command.address import Address
from policyd.server.server import Server
from policyd.settings import ServerSettings
from policyd.v1.policy_pb2 import EvaluateRequest

DESCRIPTOR = EvaluateRequest(has_user=True)
Settings = Callable[..., ServerSettings]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def settings(tmp_path: Path, authority: trustme.CA) -> Settings:
    """Makes settings with a certificate for 127.0.0.1."""
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def make(**changes: object) -> ServerSettings:
        return ServerSettings(
            database_url=f"sqlite:///{tmp_path}/policyd.db",
            grpc=Address("127.0.0.1", 0),
            admin=Address("127.0.0.1", 0),
            admin_token_file=tmp_path / "admin-token",
            spool=tmp_path / "spool",
            tls_cert=tmp_path / "cert.pem",
            tls_key=tmp_path / "key.pem",
            **changes,  # type: ignore[arg-type]  # whatever the test wants
        )

    return make


async def test_tls(settings: Settings, authority: trustme.CA) -> None:
    """A caller that trusts the authority is answered.

    One that does not, or that speaks in the clear, is not.
    """
    async with Server(settings()) as server:
        at = str(server.grpc)
        trusting = tls_credentials(authority.cert_pem.bytes())
        async with PolicyClient(at, credentials=trusting, timeout=20) as client:
            assert (await client.evaluate(DESCRIPTOR)).denial.http_status == 403
        stranger = tls_credentials(trustme.CA().cert_pem.bytes())
        for credentials in (stranger, None):
            async with PolicyClient(at, credentials=credentials) as client:
                with pytest.raises(NoDecision):
                    await client.evaluate(DESCRIPTOR)


async def test_client_certificates(
    settings: Settings, authority: trustme.CA, tmp_path: Path
) -> None:
    """With --tls-client-ca, only callers with a certificate of that authority are answered."""
    async with Server(settings(tls_client_ca=tmp_path / "ca.pem")) as server:
        ours = authority.cert_pem.bytes()
        for issuer, is_answered in ((authority, True), (trustme.CA(), False)):
            caller = issuer.issue_cert("gateway")
            chain = caller.cert_chain_pems[0].bytes()
            shown = tls_credentials(ours, caller.private_key_pem.bytes(), chain)
            async with PolicyClient(str(server.grpc), credentials=shown, timeout=3) as client:
                if is_answered:
                    assert (await client.evaluate(DESCRIPTOR)).denial.http_status == 403
                else:
                    with pytest.raises(NoDecision):
                        await client.evaluate(DESCRIPTOR)
        nothing = tls_credentials(ours)
        async with PolicyClient(str(server.grpc), credentials=nothing) as client:
            with pytest.raises(NoDecision):
                await client.evaluate(DESCRIPTOR)


def test_beyond_loopback(settings: Settings, tmp_path: Path) -> None:
    """With TLS and authenticated callers policyd may listen to other machines."""
    anywhere = Address("0.0.0.0", 0)  # noqa: S104  # It is not listened on.
    made = settings(tls_client_ca=tmp_path / "ca.pem")
    assert replace(made, grpc=anywhere, admin=anywhere).grpc == anywhere
