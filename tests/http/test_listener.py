"""The listener of the HTTP check: which callers may ask, TLS, workers, and how it ends."""

import asyncio
import gzip
import json
import signal
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from policyd.command.address import Address
from policyd.engine.states import Mode
from policyd.errors import CannotListen, SettingsError
from policyd.policies import TABLE
from policyd.server.server import Server
from policyd.settings import ServerSettings
from tests.support.databases import open_store
from tests.support.http_checks import about, check, evaluate
from tests.support.processes import Policyd
from tests.support.raw_http import CHAT, CHAT_WITH_USER, ask, connect, exchange, parse, request


@pytest.fixture
def made(tmp_path: Path) -> ServerSettings:
    """Settings with a free port for HTTP."""
    free = Address("127.0.0.1", 0)
    return ServerSettings(
        database_url=f"sqlite:///{tmp_path}/policyd.db",
        grpc=free,
        admin=free,
        http=free,
        admin_token_file=tmp_path / "admin-token",
        spool=tmp_path / "spool",
    )


@pytest.fixture
def key(made: ServerSettings) -> str:
    """An API key of the database that these settings name."""
    store = open_store(made.database_url)
    _, secret = store.keys.create("app")
    store.close()
    return secret


TOKEN = "a-token-of-the-gateways"


@pytest.mark.slow
async def test_caller_token(made: ServerSettings, tmp_path: Path) -> None:
    """A caller shows its token in X-Policyd-Token; a check's Authorization is the client's own."""
    file = tmp_path / "caller-token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    right, wrong = ("X-Policyd-Token", TOKEN), ("X-Policyd-Token", "another")
    bearer = ("Authorization", f"Bearer {TOKEN}")
    async with Server(replace(made, caller_token_file=file)) as server:
        url = f"http://{server.http}"
        for headers in ([], [wrong], [bearer], [wrong, right], [right, right]):
            response = await check(url, "", CHAT, *headers)
            assert response.status == 401
            assert TOKEN.encode() not in response.body
        assert (await check(url, "", CHAT, right)).status == 403
        json_type = ("Content-Type", "application/json")
        refused = await ask(url, "POST", "/access/v1/evaluation", [json_type], b"{}")
        assert refused.status == 401
        assert refused.all("www-authenticate") == ['Bearer realm="policyd"']
        let_in = await ask(url, "POST", "/access/v1/evaluation", [json_type, bearer], b"{}")
        assert let_in.status == 400
        for headers, status in [([], 401), ([wrong, bearer], 401), ([bearer], 403), ([right], 403)]:
            assert (await evaluate(url, {"hasUser": True}, *headers)).status == status


@pytest.mark.slow
async def test_tls(made: ServerSettings, tmp_path: Path) -> None:
    """--tls-cert makes it speak TLS only, and --tls-client-ca only to clients of that authority."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    files: dict[str, Any] = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with Server(replace(made, **files)) as server:
        assert server.http is not None
        assert await _status_over_tls(server.http, trusting) == 403
        assert (await exchange(f"http://{server.http}", request("GET", "/"))) == b""
    async with Server(replace(made, **files, tls_client_ca=tmp_path / "ca.pem")) as server:
        assert server.http is not None
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await _status_over_tls(server.http, trusting)
        authority.issue_cert("client.test").configure_cert(trusting)
        assert await _status_over_tls(server.http, trusting) == 403


async def _status_over_tls(address: Address, context: ssl.SSLContext) -> int:
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    writer.write(request("POST", "/v1/check", about(), CHAT))
    try:
        answer = await reader.read()
        if not answer:
            raise ConnectionError
        return parse(answer).status
    finally:
        writer.close()


@pytest.mark.parametrize("flag", ["--http", "--grpc"])
def test_beyond_loopback(made: ServerSettings, tmp_path: Path, flag: str) -> None:
    """Listening beyond loopback requires TLS and authenticated callers, or `insecure`."""
    everywhere: dict[str, Any] = {flag.removeprefix("--"): Address("0.0.0.0", 0)}  # noqa: S104  # that is the point
    tls: dict[str, Any] = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    token: dict[str, Any] = {"caller_token_file": tmp_path / "token"}
    for given_ in ({}, tls, token):
        with pytest.raises(SettingsError, match=f"{flag} .* can be reached from other machines"):
            replace(made, **everywhere, **given_)
    replace(made, **everywhere, **tls, **token)
    replace(made, **everywhere, insecure=True)


async def test_a_port_that_is_taken(made: ServerSettings, policyd: Policyd) -> None:
    """A port that is taken is an error that names the flag."""
    assert policyd.http
    host, _, port = policyd.http.rpartition(":")
    with pytest.raises(CannotListen, match="--http"):
        async with Server(replace(made, http=Address(host, int(port)))):
            pass


@pytest.mark.slow
async def test_bodies_over_the_bound(made: ServerSettings) -> None:
    """policyd discards a body that is larger than --max-body, compressed or decompressed, and the
    client still gets its answer: a denial where the key enforces, else permission.
    """
    store = open_store(made.database_url)
    off, enforcing = (
        store.keys.create(mode.name, TABLE.with_original(mode))[1]
        for mode in (Mode.OFF, Mode.ENFORCE)
    )
    store.close()
    larger, far = (b'{"user":"u-1","a":"%s"}' % (b"x" * size) for size in (10**5, 20 * 2**20))
    packed = ("Content-Encoding", "gzip")
    async with Server(replace(made, max_body=10**5)) as server:
        url = f"http://{server.http}"
        assert (await check(url, enforcing, larger)).status == 413
        assert (await check(url, enforcing, gzip.compress(larger * 20), packed)).status == 413
        for key, status in ((enforcing, 413), (off, 200), ("", 403)):
            assert (await check(url, key, far)).status == status


@pytest.mark.slow
async def test_workers(tmp_path: Path) -> None:
    """All workers answer on the one port, and end cleanly."""
    server = Policyd(tmp_path, "--http", "127.0.0.1:0", "--workers", "2")
    try:
        url = f"http://{server.http}"
        key = server.create_key("enforce")
        deadline = asyncio.get_running_loop().time() + 60
        seen: set[str] = set()
        while len(seen) < 2:
            assert asyncio.get_running_loop().time() < deadline
            response = await check(url, key, CHAT_WITH_USER)
            # The middle of a decision's ID identifies the worker.
            seen.update(value[12:24] for value in response.all("x-policyd-decision-id"))
    finally:
        assert server.stop() == 0, server.errors


@pytest.mark.slow
async def test_checks_under_way_when_it_stops(tmp_path: Path) -> None:
    """Checks under way are answered, and new ones are not accepted."""
    server = Policyd(tmp_path, "--http", "127.0.0.1:0")
    key = server.create_key("enforce")
    head = [("x-usagepanda-api-key", key), *about(), ("Content-Length", str(len(CHAT_WITH_USER)))]
    reader, writer = await connect(f"http://{server.http}")
    writer.write(request("POST", "/v1/check", head) + CHAT_WITH_USER[:10])
    await writer.drain()
    assert (await check(f"http://{server.http}", key, CHAT)).status == 422
    server.send(signal.SIGTERM)
    await _refused(f"http://{server.http}")
    writer.write(CHAT_WITH_USER[10:])
    assert parse(await reader.read()).status == 200
    writer.close()
    assert await asyncio.to_thread(server.wait) == 0


async def _refused(url: str) -> None:
    """Wait until nothing listens there any more."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await connect(url)
            except ConnectionError:
                return
            writer.close()
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_log_that_is_full(made: ServerSettings, key: str) -> None:
    """Without room in the log there is no decision: nothing is allowed, and the answer is 503.

    A refused key needs no room in the log.
    """
    json_type = ("Content-Type", "application/json")
    asked = {
        "subject": {"type": "api_key", "id": key},
        "action": {"name": "GET"},
        "resource": {"type": "path", "id": "/v1/models"},
    }
    async with Server(replace(made, spool_limit=1)) as server:
        url = f"http://{server.http}"
        assert (await check(url, "", CHAT)).status == 403
        assert (await evaluate(url, {"key": "up-unknown", "hasUser": True})).status == 403
        descriptor = {"key": key, "hasUser": True}
        for response in (await check(url, key, CHAT), await evaluate(url, descriptor)):
            assert response.status == 503
            assert response.all("retry-after")[0] in {"1", "2", "3"}
            assert response.all("x-policyd-decision-id") == []
        body = json.dumps(asked).encode()
        answer = await ask(url, "POST", "/access/v1/evaluation", [json_type], body)
        decision = json.loads(answer.body)
        assert decision["decision"] is False
        assert decision["context"]["error"]["status"] == 503
