"""policyd.client over HTTP: what answers in policyd's place, connections that are closed, tokens,
TLS, and addresses. test_peers.py and test_statuses.py run over gRPC and HTTP alike."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from policyd.client import NoDecision, PolicyClient, SyncPolicyClient, tls_credentials
from policyd.client.local import LocalPolicyClient
from policyd.server.server import Server
from policyd.v1 import policy_pb2 as pb
from tests.support.databases import put_database
from tests.support.processes import Policyd
from tests.support.running import LOCAL, beside, settings

DESCRIPTOR = pb.EvaluateRequest(has_user=True)
ALLOWED = pb.EvaluateResponse(decision=pb.DECISION_ALLOW, decision_id="1").SerializeToString()
AWAY_TOLD = "policyd gave no decision (UNAVAILABLE: "
LARGE = 64 * 2**20
"""Bytes of a body that no client should read."""


def response(status: str, body: bytes, *more: str, kind: str = "text/html") -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more)
    return "\r\n".join((*lines, "", "")).encode() + body


ANSWER = response("200 OK", ALLOWED, kind="application/proto")


class Web:
    """A server that answers each request with `reply`, and keeps what it gets. It closes the
    connection, unasked, in place of answering the requests whose numbers are in `closes`."""

    def __init__(self, reply: bytes, closes: tuple[int, ...] = ()) -> None:
        self.reply = reply
        self.closes = closes
        self.requests: list[bytes] = []
        self.bodies: list[bytes] = []
        self.sent = 0
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not reader.at_eof():
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.requests.append(head)
                self.bodies.append(await reader.readexactly(int(length or 0)))
                if len(self.requests) in self.closes:
                    break
                await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        for begin in range(0, len(self.reply), 2**16):
            writer.write(self.reply[begin : begin + 2**16])
            await writer.drain()
            self.sent += len(self.reply[begin : begin + 2**16])


@asynccontextmanager
async def web(reply: bytes, *closes: int) -> AsyncIterator[Web]:
    """Such a server."""
    running = Web(reply, closes)
    async with await asyncio.start_server(running.serve, "127.0.0.1", 0) as server:
        running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield running


HUGE = response("200 OK", b"a" * LARGE, kind="application/proto")
ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\n\r\n" + b"a" * LARGE
STRANGERS = {
    "not found": response("404 Not Found", b"<html>"),
    "HTML": response("200 OK", b"<html>"),
    "no message": response("200 OK", b"\xff\xff\xff", kind="application/proto"),
    "another's error": response("403 Forbidden", b'{"error":{}}', kind="application/json"),
    "an unknown code": response("400 Bad", b'{"code":"odd"}', kind="application/json"),
    "code ok": response("400 Bad", b'{"code":"ok"}', kind="application/json"),
    "deep JSON": response("400 Bad", b"[" * 100_000, kind="application/json"),
    "a redirect": response("302 Found", b"", "Location: REDIRECTED/"),
    "a redirect that repeats": response("307 Temporary", b"", "Location: REDIRECTED/"),
    "huge": HUGE,
    "huge, without a length": ENDLESS,
}
AWAY = {
    "a proxy without policyd": response("502 Bad Gateway", b"<html>"),
    "no HTTP": b"220 mail ESMTP\r\n",
    "an early end": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab",
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_what_is_no_policyd(name: str) -> None:
    """What answers in policyd's place decides nothing, and is no outage, for which a request might
    pass. It is asked once, its redirect is not followed, and of its answer 4 MiB are read."""
    async with web(ANSWER) as elsewhere:
        reply = STRANGERS[name].replace(b"REDIRECTED", elsewhere.url.encode())
        async with web(reply) as stranger, PolicyClient(stranger.url, timeout=60) as client:
            with pytest.raises(NoDecision, match=r"UNKNOWN: http://.* --http") as caught:
                await client.evaluate(DESCRIPTOR)
            assert not caught.value.is_outage
            posts = [one for one in stranger.requests if one.startswith(b"POST")]
            assert len(posts) == 1
            assert stranger.sent < LARGE
        assert elsewhere.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("name", AWAY)
async def test_what_is_an_outage(name: str) -> None:
    """A proxy that reaches no policyd, and what speaks no HTTP, are outages."""
    async with web(AWAY[name], *range(100, 200)) as away, PolicyClient(away.url) as client:
        closing = asyncio.create_task(client.evaluate(DESCRIPTOR))
        with pytest.raises(NoDecision) as caught:
            await closing
        assert caught.value.is_outage
        assert not await client.can_reach(5)


async def test_one_is_no_policyd() -> None:
    """Where one address is no policyd, the other answers each request, and a request need not be
    lost; of each, the stranger has seen no more than one try."""
    async with web(ANSWER) as policyd, web(STRANGERS["not found"]) as stranger:
        async with PolicyClient([stranger.url, policyd.url], timeout=60) as client:
            for _ in range(20):
                assert (await client.evaluate(DESCRIPTOR)).decision_id == "1"
        assert sum(one.startswith(b"POST") for one in stranger.requests) <= 20


async def test_a_kept_connection_that_is_closed() -> None:
    """policyd closes a kept connection as a request meets it, as at a restart: the request is made
    again at once, with its key, and the address is not away for it."""
    async with web(ANSWER, 2) as policyd, PolicyClient(policyd.url, timeout=60) as client:
        for _ in range(3):
            assert (await client.evaluate(DESCRIPTOR)).decision_id == "1"
        assert policyd.connections == 2
        keys = [pb.EvaluateRequest.FromString(one).idempotency_key for one in policyd.bodies]
        assert [keys.index(key) for key in keys] == [0, 1, 1, 3]
        assert all(one.startswith(b"POST /policyd.v1.") for one in policyd.requests)  # No look.


async def test_what_is_sent() -> None:
    """A call is a plain request, with the token, and with a time only where policyd waits."""
    async with web(ANSWER) as policyd, PolicyClient(policyd.url, token="secret") as client:
        await client.evaluate(DESCRIPTOR)
        await client.evaluate(pb.EvaluateRequest(has_user=True, min_revision=1))
    names = [
        [line.partition(b":")[0].decode() for line in head.split(b"\r\n")[1:] if line]
        for head in policyd.requests
    ]
    usual = {"Host", "Content-Type", "Authorization", "Content-Length"}
    assert [set(one) for one in names] == [usual, usual | {"Connect-Timeout-Ms"}]
    assert b"Authorization: Bearer secret" in policyd.requests[0]


# --- a real policyd ------------------------------------------------------------------------------


async def test_all_of_it(policyd: Policyd) -> None:
    """Decisions, batches, keys and outcomes are as over gRPC."""
    key = policyd.create_key("enforce")
    over_http = PolicyClient(f"http://{policyd.http}", timeout=30)
    over_grpc = PolicyClient(policyd.grpc, timeout=30)
    async with over_http, over_grpc:
        for has_user in (True, False):
            asked = [pb.EvaluateRequest(key=key, has_user=has_user) for _ in range(3)]
            answers = [
                answer
                for client in (over_http, over_grpc)
                for answer in (
                    await client.evaluate(asked[0]),
                    *await asyncio.gather(*map(client.evaluate, asked)),
                )
            ]
            assert len({answer.decision_id for answer in answers}) == 8
            over_http.report(pb.Outcome(decision_id=answers[0].decision_id))
            for answer in answers:
                answer.ClearField("decision_id")
                assert answer == answers[0]
        for one in (pb.CheckKeyRequest(key=key), pb.CheckKeyRequest(key="up-unknown")):
            assert await over_http.check_key(one) == await over_grpc.check_key(one)
        assert await over_http.can_reach(30)
        assert await over_http.can_decide(30)
    assert over_http.outcomes_lost == 0


@pytest.mark.slow
async def test_errors(policyd: Policyd) -> None:
    """policyd's errors have the same words as over gRPC."""
    told = []
    for target in (policyd.grpc, f"http://{policyd.http}"):
        async with PolicyClient(target, timeout=30) as client:
            for wrong in (
                pb.EvaluateRequest(has_user=True, idempotency_key="x"),
                pb.EvaluateRequest(has_user=True, min_revision=10**9),
            ):
                with pytest.raises(NoDecision) as caught:
                    await client.evaluate(wrong)
                told.append((str(caught.value), caught.value.is_outage))
    assert told[:2] == told[2:]


def test_threads(policyd: Policyd) -> None:
    """SyncPolicyClient asks over HTTP as well."""
    key = policyd.create_key("enforce")
    with SyncPolicyClient(f"http://{policyd.http}", timeout=30) as client:
        for has_user in (True, False):
            answer = client.evaluate(pb.EvaluateRequest(key=key, has_user=has_user))
            assert (answer.decision == pb.DECISION_ALLOW) == has_user
        assert client.check_key(pb.CheckKeyRequest(key=key)).in_force


async def test_tokens(tmp_path: Path) -> None:
    """policyd asks for a token, and is shown none, another or the right one."""
    (tmp_path / "token").write_text("the-right-token-of-them\n")
    (tmp_path / "token").chmod(0o600)
    with beside(tmp_path, caller_token_file=tmp_path / "token", http=LOCAL) as running:
        url = f"http://{running.http}"
        for token in ("", "another"):
            async with PolicyClient(url, token=token, timeout=30) as client:
                with pytest.raises(NoDecision, match=r"\(UNAUTHENTICATED: ") as caught:
                    await client.evaluate(DESCRIPTOR)
                assert not caught.value.is_outage
                assert await client.can_reach(30)
        async with PolicyClient(url, token="the-right-token-of-them", timeout=30) as client:
            assert (await client.evaluate(DESCRIPTOR)).denial.http_status == 403


async def test_no_room(tmp_path: Path) -> None:
    """A policyd with as many connections as may be was reached: that is no outage. Here two calls
    wait for a revision, so that a third finds no room."""
    patient = pb.EvaluateRequest(has_user=True, min_revision=10**9)

    async def why(url: str) -> str:
        async with PolicyClient(url, timeout=4) as client:
            with pytest.raises(NoDecision) as caught:
                await client.evaluate(patient)
        return f"{caught.value} {caught.value.is_outage}"

    with beside(tmp_path, http=LOCAL, max_connections=2) as running:
        url = f"http://{running.http}"
        first, second, third = sorted(await asyncio.gather(why(url), why(url), why(url)))
    assert "(FAILED_PRECONDITION: " in first
    assert first == second
    assert "(RESOURCE_EXHAUSTED: there are as many connections" in third
    assert third.endswith(" False")


@pytest.mark.parametrize("status", ["502 Bad Gateway", "503 X", "504 X", "404 X", "200 OK"])
async def test_whether_it_decides(status: str) -> None:
    """A proxy that reaches no policyd does not decide; an older policyd does not say it."""
    told = response(status, b'{"state":"not deciding"}', kind="application/json")
    async with web(told) as asked, PolicyClient(asked.url) as client:
        assert await client.can_decide(60) == (status[0] != "5")


@pytest.mark.slow
async def test_a_policyd_that_is_stopped(tmp_path: Path) -> None:
    """A call that policyd cannot finish before its end is no outage: policyd was reached."""
    given = settings(tmp_path, http=LOCAL, grace=0.2)
    put_database(given.database_url)
    server = Server(given)
    await server.__aenter__()
    async with PolicyClient(f"http://{server.http}", timeout=3) as client:
        await client.evaluate(DESCRIPTOR)
        waiting = pb.EvaluateRequest(has_user=True, min_revision=10**9)
        asked = asyncio.create_task(client.evaluate(waiting))
        await asyncio.sleep(0.2)
        await server.stop()
        with pytest.raises(NoDecision, match="CANCELLED: policyd is being stopped") as caught:
            await asked
        assert not caught.value.is_outage


@asynccontextmanager
async def serving(folder: Path, authority: trustme.CA, **changes: Any) -> AsyncIterator[str]:
    """HOST:PORT of a policyd with a certificate for 127.0.0.1."""
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    files = {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}
    given = settings(folder, http=LOCAL, **files, **changes)
    put_database(given.database_url)
    async with Server(given) as server:
        yield str(server.http)


def trusting(authority: trustme.CA, shown: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """TLS that trusts the authority, and shows a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    if shown:
        shown.configure_cert(context)
    return context


async def outcome(target: str, context: ssl.SSLContext | None = None) -> str:
    """ "answered", or why not; where TLS does not come about, that is an outage."""
    async with PolicyClient(target, credentials=context, timeout=3) as client:
        try:
            await client.evaluate(DESCRIPTOR)
        except NoDecision as problem:
            return str(problem) if problem.is_outage else f"no outage: {problem}"
        return "answered"


@pytest.mark.slow
async def test_tls(tmp_path: Path) -> None:
    """A caller that trusts the authority is answered. One that does not is not, nor one that speaks
    in the clear."""
    ours = trustme.CA()
    async with serving(tmp_path, ours) as place:
        assert await outcome(f"https://{place}", trusting(ours)) == "answered"
        told = await outcome(f"https://{place}")
        assert told.startswith(AWAY_TOLD)
        assert "CERTIFICATE_VERIFY_FAILED" in told
        assert (await outcome(f"https://{place}", trusting(trustme.CA()))).startswith(AWAY_TOLD)
        assert (await outcome(f"http://{place}")).startswith(AWAY_TOLD)


@pytest.mark.slow
async def test_client_certificates(tmp_path: Path) -> None:
    """With --tls-client-ca, only callers with a certificate of that authority are answered."""
    ours = trustme.CA()
    async with serving(tmp_path, ours, tls_client_ca=tmp_path / "ca.pem") as place:
        url = f"https://{place}"
        assert await outcome(url, trusting(ours, ours.issue_cert("gateway"))) == "answered"
        for shown in (None, trustme.CA().issue_cert("gateway")):
            assert (await outcome(url, trusting(ours, shown))).startswith(AWAY_TOLD)


@pytest.mark.slow
async def test_tls_where_there_is_none(policyd: Policyd) -> None:
    """The caller speaks TLS, and policyd does not."""
    assert (await outcome(f"https://{policyd.http}", trusting(trustme.CA()))).startswith(AWAY_TOLD)


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [PolicyClient, SyncPolicyClient])
@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("http://a:1,b:2", "of one kind"),
        ("http://a:1,https://b:2", "of one kind"),
        ("http://a:1/path", "without a path"),
        ("http://a:1?x", "without a path"),
        ("http://user@a:1", "without a path"),
        ("http://", "without a path"),
        ("http://a:99999", "without a path"),
        ("http://a b:1", "without a path"),
    ],
)
def test_wrong_addresses(make: Callable[[str], object], target: str, wrong: str) -> None:
    """Addresses are of one kind, and hold a host and a port only."""
    with pytest.raises(ValueError, match=wrong):
        make(target)


def test_credentials() -> None:
    """Credentials are those of the transport, and of TLS."""
    context = ssl.create_default_context()
    with pytest.raises(TypeError, match="tls_credentials"):
        PolicyClient("a:1", credentials=context)
    with pytest.raises(TypeError, match=r"ssl\.SSLContext"):
        PolicyClient("https://a:1", credentials=tls_credentials())
    with pytest.raises(ValueError, match="https://"):
        PolicyClient("http://a:1", credentials=context)


def test_local_decisions(tmp_path: Path) -> None:
    """LocalPolicyClient follows policyd over gRPC only."""
    with pytest.raises(ValueError, match="LocalPolicyClient asks policyd over gRPC"):
        LocalPolicyClient("http://a:1", spool=tmp_path, token="x")


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without aiohttp, the error names what to install; gRPC goes without it."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ValueError, match=r"pip install 'policyd\[http\]'"):
        PolicyClient("http://a:1")
    PolicyClient("a:1")


# --- health --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reaches", "decides"),
    [
        (response("200 OK", b'{"state":"alive"}'), True, True),
        (response("503 Down", b'{"state":"not deciding","reason":"x"}'), False, False),
        (STRANGERS["not found"], False, True),
        (AWAY["no HTTP"], False, False),
    ],
)
async def test_health(reply: bytes, reaches: bool, decides: bool) -> None:
    """policyd is reached where it says that it lives, and decides unless it says otherwise; one of
    an older version does not say it."""
    async with web(reply) as policyd, PolicyClient(policyd.url) as client:
        assert await client.can_reach(30) == reaches
        assert await client.can_decide(30) == decides
        looked = {one.split(b" ")[1] for one in policyd.requests}
    assert looked == {b"/healthz", b"/decisionsz"}
