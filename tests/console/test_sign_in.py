"""Signing in to the console, and how it keeps attackers out."""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from starlette.requests import Request
from starlette.responses import Response

from policyd.command.address import Address
from policyd.console.security.sessions import LIFETIME, LINK_LIFETIME, Sessions
from policyd.errors import CannotListen, SettingsError
from policyd.settings import ServerSettings
from tests.support.consoles import PASSWORD, Console, Visitor, running, settings
from tests.support.processes import run


@pytest.fixture
async def visitor(console: Console) -> AsyncIterator[Visitor]:
    """A visitor who is not signed in."""
    async with Visitor(console.url) as visitor:
        yield visitor


def _link(console: Console) -> str:
    link = console.first_link
    assert link
    return link


def _passwords(password: str = PASSWORD) -> dict[str, str]:
    return {"password": password, "repeated": password}


async def _set_password(console: Console, visitor: Visitor) -> None:
    form = await visitor.get(_link(console))
    done = await visitor.post("/first-password", _passwords() | {"code": form.field("code")})
    assert "<h1>Dashboard</h1>" in done.text


async def test_the_first_link(console: Console, visitor: Visitor) -> None:
    """The link lets the administrator set a password, signs in, and is valid only once."""
    link = _link(console)
    assert (await visitor.get(link)).status == 200
    await _set_password(console, visitor)
    assert console.first_link is None
    async with Visitor(console.url) as other:
        assert "no longer good" in (await other.get(link)).text
        code = urlsplit(link).query.removeprefix("code=")
        again = await other.post(
            "/first-password", _passwords("another one, later") | {"code": code}
        )
        assert "no longer good" in again.text
        assert (await other.sign_in("another one, later")).status == 401
        assert (await other.sign_in(PASSWORD)).status == 303


async def test_looking_at_the_link_uses_nothing_up(console: Console, visitor: Visitor) -> None:
    """A program that fetches the link first, such as a chat's preview, does not use it up."""
    link = _link(console)
    for _ in range(3):
        await visitor.get(link)
    await _set_password(console, visitor)


async def test_a_made_up_link(visitor: Visitor) -> None:
    """A made-up link sets no password."""
    for code in ("", "x", "x.y.z"):
        form = _passwords() | {"code": code}
        assert "no longer good" in (await visitor.post("/first-password", form)).text
    assert (await visitor.sign_in(PASSWORD)).status == 401


@pytest.mark.parametrize(
    ("password", "repeated", "told"),
    [
        ("short", "short", "at least 12 characters"),
        ("aaaaaaaaaaaaaa", "aaaaaaaaaaaaaa", "5 different"),
        (PASSWORD, PASSWORD + "!", "differ"),
        ("ab c" * 60, "ab c" * 60, "at most 200"),
        ("", "", "at least 12 characters"),
    ],
)
async def test_an_unfit_password(
    console: Console, visitor: Visitor, password: str, repeated: str, told: str
) -> None:
    """The form names what is wrong with the password, and the link stays valid."""
    form = {"password": password, "repeated": repeated}
    code = urlsplit(_link(console)).query.removeprefix("code=")
    answer = await visitor.post("/first-password", form | {"code": code})
    assert answer.status == 422
    assert told in answer.text
    await _set_password(console, visitor)


async def test_the_token(console: Console, visitor: Visitor) -> None:
    """The administration token signs in, before a password is set and afterwards."""
    assert (await visitor.sign_in(console.token)).status == 303
    await _set_password(console, visitor)
    async with Visitor(console.url) as other:
        assert (await other.sign_in(console.token)).status == 303


async def test_a_wrong_password(console: Console, visitor: Visitor) -> None:
    """A wrong password is rejected, and neither shown nor logged."""
    await _set_password(console, visitor)
    async with Visitor(console.url) as other:
        for wrong in ("", "wrong password here", PASSWORD.upper(), "x" * 10_000, "\0", "é" * 20):
            answer = await other.sign_in(wrong)
            assert answer.status == 401
            assert "neither the password nor the administration token" in answer.text
            assert not wrong.strip("\0x") or wrong not in answer.text
        assert (await other.get("/keys", follow=False)).status == 303


async def test_a_password_typed_on_another_keyboard(console: Console, visitor: Visitor) -> None:
    """An accented letter counts the same however it is composed."""
    form = await visitor.get(_link(console))
    composed = "caf\u00e9 au lait, please"
    await visitor.post("/first-password", _passwords(composed) | {"code": form.field("code")})
    async with Visitor(console.url) as other:
        assert (await other.sign_in("cafe\u0301 au lait, please")).status == 303


async def test_strangers_see_nothing(visitor: Visitor) -> None:
    """Without a session every page asks for a sign-in, whether it exists or not."""
    for path in (
        "/",
        "/keys",
        "/keys/new",
        "/logs",
        "/logs/rows",
        "/users",
        "/account",
        "/nothing",
    ):
        answer = await visitor.get(path, follow=False)
        assert answer.status == 303
        assert answer.headers["Location"].startswith("/sign-in")
    for path in ("/keys", "/keys/key_1", "/keys/key_1/revoke", "/sign-out-everywhere"):
        assert (await visitor.post(path, {}, follow=False)).headers["Location"] == "/sign-in"
    answer = await visitor.get("/logs/rows", HX_Request="true")
    assert (answer.status, answer.headers["HX-Redirect"]) == (401, "/sign-in")


async def test_a_shared_link(console: Console, visitor: Visitor) -> None:
    """After the sign-in the console goes on to the page that the link names."""
    asked = await visitor.get("/logs?user=a%26b&trace=t1")
    assert asked.field("next") == "/logs?user=a%26b&amp;trace=t1"
    done = await visitor.sign_in(console.token, "/logs?user=a%26b&trace=t1")
    assert done.headers["Location"] == "/logs?user=a%26b&trace=t1"


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "evil", "/a\r\nX: y"]
)
async def test_a_link_that_leads_elsewhere(console: Console, visitor: Visitor, target: str) -> None:
    """After the sign-in the console redirects to none but its own pages."""
    done = await visitor.sign_in(console.token, target)
    assert (done.status, done.headers["Location"]) == (303, "/")


async def test_the_cookie(console: Console, visitor: Visitor) -> None:
    """The cookie is kept from scripts and from other sites' requests, and expires."""
    done = await visitor.sign_in(console.token)
    cookie = done.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert f"Max-Age={LIFETIME}" in cookie
    assert "Secure" not in cookie


async def test_a_tampered_cookie(console: Console, visitor: Visitor) -> None:
    """A tampered cookie is ignored."""
    cookie = (await visitor.sign_in(console.token)).headers["Set-Cookie"].partition(";")[0]
    for changed in (
        cookie[:-2] + "xx",
        cookie.replace(".", ""),
        cookie.partition("=")[0],
        cookie[:60],
    ):
        async with Visitor(console.url) as other:
            answer = await other.get("/keys", follow=False, Cookie=changed)
            assert answer.status == 303
    async with Visitor(console.url) as other:
        assert (await other.get("/keys", Cookie=cookie)).status == 200


def test_the_end_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session and a link end after their time, with the epoch, and with the token."""
    sessions = Sessions("the token of a test", secure=False)
    response = Response()
    sessions.begin(response, 1)
    code = sessions.link_code(1)
    cookie = response.headers["set-cookie"].partition(";")[0]
    request = Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})
    assert sessions.session(request, 1)
    assert not sessions.session(request, 2)
    assert not Sessions("another token", secure=False).session(request, 1)
    # A link is no session, and a session is no link.
    swapped = Request(
        {"type": "http", "headers": [(b"cookie", f"{sessions.cookie}={code}".encode())]}
    )
    assert not sessions.session(swapped, 1)
    assert sessions.is_link_code(code, 1)
    assert not sessions.is_link_code(code, 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LIFETIME + 2)
    assert not sessions.session(request, 1)
    assert sessions.is_link_code(code, 1)
    monkeypatch.setattr(time, "time", lambda: now + LINK_LIFETIME + 2)
    assert not sessions.is_link_code(code, 1)


async def test_signing_out(console: Console, visitor: Visitor) -> None:
    """Signing out ends this session; signing out everywhere ends all of them."""
    async with Visitor(console.url) as other, Visitor(console.url) as third:
        for one in (visitor, other, third):
            await one.sign_in(console.token)
        await visitor.post("/sign-out")
        assert (await visitor.get("/keys", follow=False)).status == 303
        assert (await other.get("/keys", follow=False)).status == 200
        await other.post("/sign-out-everywhere")
        assert (await other.get("/keys", follow=False)).status == 303
        assert (await third.get("/keys", follow=False)).status == 303


async def test_changing_the_password(console: Console, visitor: Visitor) -> None:
    """Changing the password requires the current one, and ends all sessions but this one."""
    await _set_password(console, visitor)
    new = _passwords("three other words")
    async with Visitor(console.url) as other:
        await other.sign_in(PASSWORD)
        wrong = await visitor.post("/account/password", new | {"current": "wrong one, sorry"})
        assert "current password is wrong" in wrong.text
        weak = await visitor.post("/account/password", _passwords("x") | {"current": PASSWORD})
        assert "at least 12 characters" in weak.text
        done = await visitor.post("/account/password", new | {"current": PASSWORD})
        assert "The password is changed" in done.text
        assert (await other.get("/keys", follow=False)).status == 303
        assert (await other.sign_in(PASSWORD)).status == 401
        assert (await other.sign_in("three other words")).status == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "", "Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": ""},
    ],
)
async def test_another_sites_request(
    console: Console, visitor: Visitor, headers: dict[str, Any]
) -> None:
    """Another site's request changes nothing, even in the administrator's own browser."""
    await visitor.sign_in(console.token)
    for path in ("/keys", "/sign-out-everywhere", "/account/password", "/sign-in"):
        answer = await visitor.post(path, {"name": "forged"}, **headers)
        assert answer.status == 403
        assert "did not come from a page of this console" in answer.text
    assert console.store.keys.list() == []
    assert (await visitor.get("/keys", follow=False)).status == 200


async def test_a_request_without_an_origin(console: Console, visitor: Visitor) -> None:
    """A request that the browser marks as same-origin is allowed without an Origin."""
    await visitor.sign_in(console.token)
    answer = await visitor.post("/keys", {"name": "app"}, Origin="", Sec_Fetch_Site="same-origin")
    assert answer.status == 201


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[x"])
async def test_a_rebound_name(visitor: Visitor, host: str) -> None:
    """On loopback, the console rejects another host's name, because it means DNS rebinding."""
    answer = await visitor.get("/sign-in", Host=host or " ")
    assert answer.status in (400, 421)
    assert "Sign in" not in answer.text


async def test_the_names_of_this_machine(console: Console, visitor: Visitor) -> None:
    """All names of this machine are accepted."""
    port = urlsplit(console.url).port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]", "127.0.0.2"):
        assert (await visitor.get("/sign-in", Host=host)).status == 200


async def test_headers(console: Console, visitor: Visitor) -> None:
    """Every response, errors included, has the headers that keep out scripts, frames and caches."""
    await visitor.sign_in(console.token)
    style = (await visitor.get("/")).text.partition('rel="stylesheet" href="')[2].partition('"')[0]
    for path in ("/", "/keys", "/logs?since=x", "/logs/export.csv", "/nothing", style, "/sign-in"):
        headers = (await visitor.get(path)).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == (
            "public, max-age=31536000, immutable" if path == style else "no-store"
        )
        assert "Server" not in headers


async def test_headers_of_a_failure(
    console: Console, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of an internal error has the same headers, and reveals no more."""

    def fail(_: object) -> None:
        raise ValueError("a detail of ours")

    monkeypatch.setattr(console.server._console.store.administrator, "get", fail)
    answer = await visitor.get("/sign-in")
    assert answer.status == 500
    assert "a detail of ours" not in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"


async def test_a_head_without_end(console: Console) -> None:
    """The headers of a request have a bound, whichever client sends them."""
    reader, writer = await asyncio.open_connection(*console.server.address)
    writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    for _ in range(100):
        writer.write(b"x: " + b"a" * 2000 + b"\r\n")
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 4")
    writer.close()


async def test_connections_that_ask_for_nothing(tmp_path: Path) -> None:
    """The console closes idle connections and unfinished requests, whether it is the first request
    or a later one.
    """
    sign_in = b"GET /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    form = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    form += b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 99\r\n\r\na="
    async with running(settings(tmp_path), head=0.2, body=0.2, idle=0.2) as console:
        for begun in (b"", sign_in, sign_in[:20], sign_in + sign_in[:20], form):
            reader, writer = await asyncio.open_connection(*console.server.address)
            writer.write(begun)
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(30):
                    await reader.read()
            writer.close()


async def test_too_many_connections(tmp_path: Path) -> None:
    """The console closes connections that are only held, to serve those that send requests."""
    async with running(settings(tmp_path), connections=3) as console:
        held = [await asyncio.open_connection(*console.server.address) for _ in range(5)]
        async with asyncio.timeout(30), Visitor(console.url) as visitor:
            assert (await visitor.get("/sign-in")).status == 200
            for reader, _ in held[:3]:
                assert await reader.read() == b""
        for _, one in held:
            one.close()


async def test_what_is_not_http(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """Input that is not HTTP is rejected or answered with a page, and fills no log."""
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n"
    for sent in (
        b"\x16\x03\x01\x02\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + upgrade + b"\r\n",
    ):
        reader, writer = await asyncio.open_connection(*console.server.address)
        writer.write(sent)
        async with asyncio.timeout(30):
            assert (await reader.read()).startswith(b"HTTP/1.1 ")
        writer.close()
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_no_inline_script_or_style(console: Console, visitor: Visitor) -> None:
    """No page needs what the Content-Security-Policy forbids."""
    await visitor.sign_in(console.token)
    key, _ = console.store.keys.create("app")
    for path in ("/", "/keys", "/keys/new", f"/keys/{key.id}", "/logs", "/users", "/account"):
        text = (await visitor.get(path)).text
        assert "<style" not in text
        assert ' style="' not in text
        assert " onclick=" not in text
        assert text.count("<script") == text.count("<script src=")


async def test_too_many_attempts(console: Console, visitor: Visitor) -> None:
    """After ten attempts in a minute from one address even the right password must wait, and the
    page tells so.
    """
    for _ in range(10):
        assert (await visitor.sign_in("wrong password here")).status == 401
    answer = await visitor.sign_in(console.token)
    assert answer.status == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert f"Wait {answer.headers['Retry-After']} seconds" in answer.text


async def test_nothing_secret_is_logged(
    console: Console, visitor: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    """The log holds no password, token, link or cookie."""
    caplog.set_level(logging.DEBUG)
    link = _link(console)
    await _set_password(console, visitor)
    cookie = (await visitor.sign_in(console.token)).headers["Set-Cookie"].partition(";")[0]
    await visitor.sign_in("a wrong password")
    code = urlsplit(link).query.removeprefix("code=")
    for secret in (PASSWORD, console.token, code, cookie, "a wrong password"):
        assert secret not in caplog.text
        assert secret not in repr(console.settings)


async def test_odd_forms(console: Console, visitor: Visitor) -> None:
    """A form that is too large, or no form at all, gets a response and no traceback."""
    assert (await visitor.post("/sign-in", "password=" + "x" * 100_000)).status == 413
    broken: dict[str, Any] = {"Content_Type": "multipart/form-data"}
    assert (await visitor.post("/sign-in", b"--x", **broken)).status == 400
    many = "&".join(f"a{n}=1" for n in range(1000))
    form: dict[str, Any] = {"Content_Type": "application/x-www-form-urlencoded"}
    assert (await visitor.post("/sign-in", many.encode(), **form)).status == 400
    binary = b"password=%ff%fe&next=%00"
    assert (await visitor.post("/sign-in", binary, **form)).status == 401
    for charset in ("undefined", "utf-7", "unicode_escape"):
        kind = f"multipart/form-data; boundary=x; charset={charset}"
        body = b'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n+2AA-\r\n--x--\r\n'
        answer = await visitor.post("/sign-in", body, Content_Type=kind)
        assert (answer.status, "multipart/form-data" in answer.text) == (400, True)
    await visitor.sign_in(console.token)
    origin = {"Origin": console.url}
    async with visitor.session.put(console.url + "/keys", headers=origin) as put:
        assert put.status == 405


async def test_tls(tmp_path: Path) -> None:
    """Under TLS the cookie is bound to this host and to TLS."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    chosen = settings(tmp_path, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    async with running(chosen) as console, Visitor(console.url) as visitor:
        assert console.url.startswith("https://")
        visitor.session.connector._ssl = trusting  # type: ignore[union-attr]  # of this test only
        done = await visitor.sign_in(console.token)
        cookie = done.headers["Set-Cookie"]
        assert cookie.startswith("__Host-policyd-session-")
        assert "Secure" in cookie
        assert "Path=/" in cookie
        assert (await visitor.get("/keys", follow=False)).status == 200


@pytest.mark.parametrize("ending", ["", "/", ":443"])
@pytest.mark.parametrize("host", ["policyd.example.com", "Policyd.Example.com"])
async def test_behind_a_proxy(tmp_path: Path, host: str, ending: str) -> None:
    """Behind a proxy the public URL counts, in any spelling, and whatever host the proxy sends."""
    public = "https://policyd.example.com"
    async with running(settings(tmp_path, console_url=f"https://{host}{ending}")) as console:
        assert console.url == public
        assert (console.first_link or "").startswith(public)
        async with Visitor(f"http://{console.server.address}") as visitor:
            for host in ("policyd.example.com", "127.0.0.1:8081"):
                form = {"password": console.token}
                through = {"Host": host, "Origin": public}
                done = await visitor.post("/sign-in", form, follow=False, **through)
                assert (done.status, done.headers["Location"]) == (303, "/")
                assert done.headers["Set-Cookie"].startswith("__Host-")
                direct: dict[str, Any] = {"Host": host, "Origin": f"http://{host}"}
                assert (await visitor.post("/sign-in", form, **direct)).status == 403
            assert (await visitor.get("/sign-in", Host="evil.example")).status == 421


def test_beyond_this_machine(tmp_path: Path) -> None:
    """Without TLS the console listens on loopback only, unless its operator allows otherwise."""
    public = Address("0.0.0.0", 0)  # noqa: S104  # it is rejected
    with pytest.raises(SettingsError, match=r"--console .* can be reached"):
        settings(tmp_path, console=public)
    assert settings(tmp_path, console=public, insecure=True).console == public


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """`policyd serve` and the console report a port that is taken, with the flag to change it."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = Address("127.0.0.1", stranger.getsockname()[1])
        chosen = settings(tmp_path, console=taken)
        places = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--console", str(taken))
        done = run("policyd", "serve", "--database-url", chosen.database_url, *places)
        assert done.returncode == 1
        assert f"--console {taken} cannot be listened on" in done.stderr.decode()
        with pytest.raises(CannotListen, match="--console"):
            asyncio.run(_run(chosen))


async def _run(chosen: ServerSettings) -> None:
    async with running(chosen):
        pass


@pytest.mark.parametrize("url", ["", "ftp://x", "https://", "http://x/'; rm -rf", "http://x:99999"])
def test_a_gateway_url_that_is_none(tmp_path: Path, url: str) -> None:
    """A malformed gateway URL is rejected at the start: administrators copy it in commands."""
    with pytest.raises(SettingsError, match="--console-gateway-url"):
        settings(tmp_path, console_gateway_url=url)
    with pytest.raises(SettingsError, match="--console-url"):
        settings(tmp_path, console_url=url or "https://x/path")
