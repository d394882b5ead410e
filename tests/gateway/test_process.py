"""`policyd-gateway serve` as a program: its settings, its messages, its end."""

import json
import re
import signal
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner

from gateway.settings import Settings
from policyd.command.address import Address
from policyd.command.configuration import Options
from policyd.errors import SettingsError
from tests.support.commands import invoke
from tests.support.processes import Policyd, Program, run
from tests.support.raw_http import CHAT, CHAT_WITH_USER, NO_USER

FREE = "127.0.0.1:0"


class _Upstream(BaseHTTPRequestHandler):
    """An upstream that answers everything, `/v1/held` only once the test lets go."""

    authorizations: ClassVar[list[str | None]] = []
    let_go = threading.Event()
    holding = threading.Event()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        self.authorizations.append(self.headers["Authorization"])
        if self.path == "/v1/held":
            self.holding.set()
            self.let_go.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """The URL of an upstream."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Upstream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def start(
    policyd: Policyd, upstream: str, *flags: str, env: Mapping[str, str] | None = None
) -> Program:
    """Start a gateway, which is ready when this returns."""
    place = ("--listen", FREE, "--policyd", policyd.grpc, "--upstream", upstream)
    ready = r"^policyd-gateway is ready: (https?://127\.0\.0\.1:\d+) version=\S+"
    waiting = ("--policy-timeout", "30", "--drain", "0")
    return Program("policyd-gateway", "serve", *place, *waiting, *flags, ready=ready, env=env)


def post(url: str, key: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Send a chat completion."""
    named = {"x-usagepanda-api-key": key, "Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, named)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_it_serves_and_stops(policyd: Policyd, upstream: str, number: signal.Signals) -> None:
    """The gateway prints a line when it is ready, judges, forwards, and ends with 0 silently."""
    key = policyd.create_key("enforce")
    gateway = start(policyd, upstream)
    assert post(gateway.match[1], key, CHAT) == (422, NO_USER)
    assert post(gateway.match[1], key, CHAT_WITH_USER) == (200, b"{}")
    assert gateway.stop(number) == 0
    assert len(gateway.output) == 1
    assert gateway.errors == []


def test_requests_under_way_are_finished(policyd: Policyd, upstream: str) -> None:
    """At SIGTERM the gateway closes its port, and then waits for the answers under way."""
    key = policyd.create_key()
    gateway = start(policyd, upstream)
    client = HTTPConnection(gateway.match[1].removeprefix("http://"), timeout=60)
    client.request("GET", "/v1/held", headers={"x-usagepanda-api-key": key})
    assert _Upstream.holding.wait(60)
    gateway.send(signal.SIGTERM)
    while _listens(client.host, client.port):
        pass
    _Upstream.let_go.set()
    assert client.getresponse().read() == b"{}"
    client.close()
    assert gateway.wait() == 0
    (told,) = gateway.errors
    assert "waits up to 20 s for requests under way (1): a second signal cuts them" in told


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port)):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("hurry", ["grace", pytest.param("signal", marks=pytest.mark.slow)])
def test_requests_that_do_not_end(policyd: Policyd, hurry: str) -> None:
    """Past the grace period, or at a second signal, they get 503 or are cut; no traceback."""
    key = policyd.create_key()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        flags = ("--grace", "0" if hurry == "grace" else "60")
        gateway = start(policyd, address, *flags)
        client = HTTPConnection(gateway.match[1].removeprefix("http://"), timeout=60)
        client.request("GET", "/v1/models", headers={"x-usagepanda-api-key": key})
        with silent.accept()[0]:
            gateway.send(signal.SIGTERM)
            if hurry == "signal":
                gateway.send(signal.SIGINT)
            assert gateway.wait() == 0
            client.close()
    assert "Traceback" not in "".join(gateway.errors)


def test_keys_from_files(policyd: Policyd, upstream: str, tmp_path: Path) -> None:
    """The operator's keys may stand in files, and are never logged."""
    (tmp_path / "key").write_text(policyd.create_key("enforce") + "\n")
    (tmp_path / "upstream-key").write_text("sk-operator\n")
    flags = ("--api-key-file", str(tmp_path / "key"), "--log-level", "debug")
    env = {"GATEWAY_UPSTREAM_API_KEY_FILE": str(tmp_path / "upstream-key")}
    gateway = start(policyd, upstream, *flags, env=env)
    url = f"{gateway.match[1]}/v1/chat/completions"
    _Upstream.authorizations.clear()
    headers = {"Authorization": "Bearer sk-client"}
    with urllib.request.urlopen(urllib.request.Request(url, CHAT_WITH_USER, headers)) as response:
        assert response.status == 200
    assert post(gateway.match[1], "up-wrong", CHAT_WITH_USER)[0] == 403
    assert gateway.stop() == 0
    assert _Upstream.authorizations == ["Bearer sk-operator"]
    logged = "".join(gateway.errors)
    for secret in ("sk-operator", "sk-client", (tmp_path / "key").read_text().strip(), "Hello"):
        assert secret not in logged


@pytest.mark.slow
def test_where_settings_come_from(policyd: Policyd, upstream: str, tmp_path: Path) -> None:
    """A flag beats the environment, which beats the file; the file's names may have - or _."""
    config = tmp_path / "gateway.yaml"
    config.write_text("max-body: 10\non_policy_error: allow\nlisten: 127.0.0.1:1\n")
    key = policyd.create_key("enforce")
    for env, flags, status in [
        ({}, (), 413),
        ({"GATEWAY_MAX_BODY": "1000"}, (), 200),
        ({"GATEWAY_MAX_BODY": "1000"}, ("--max-body", "20"), 413),
    ]:
        gateway = start(policyd, upstream, "--config", str(config), *flags, env=env)
        assert post(gateway.match[1], key, CHAT_WITH_USER)[0] == status
        assert gateway.stop() == 0


@pytest.mark.slow
def test_https(policyd: Policyd, upstream: str, tmp_path: Path) -> None:
    """With a certificate the gateway speaks TLS, also to other machines."""
    _make_certificate(tmp_path)
    files = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    gateway = start(policyd, upstream, *files)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    request = urllib.request.Request(f"{gateway.match[1]}/v1/models", method="OPTIONS")
    with urllib.request.urlopen(request, context=trusting) as response:
        assert response.status == 200
    assert gateway.match[1].startswith("https://")
    assert gateway.stop() == 0


@pytest.mark.slow
def test_policyd_over_tls(upstream: str, tmp_path: Path) -> None:
    """The gateway asks, over TLS, a policyd that requires a certificate and a caller's token."""
    _make_certificate(tmp_path)
    (tmp_path / "token").write_text("t" * 40)
    (tmp_path / "token").chmod(0o600)
    cert, key, token = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "token"))
    make = ("keys", "create", "test", "--enforce-user-ids", "enforce", "--json")
    made = run("policyd", *make, "--database-url", f"sqlite:///{tmp_path}/policyd.db")
    guards = ("--tls-client-ca", cert, "--caller-token-file", token)
    policyd = Policyd(tmp_path, "--tls-cert", cert, "--tls-key", key, *guards)
    flags = ("--policyd-tls", "--policyd-ca", cert, "--policyd-token-file", token)
    for shown, status in [(("--policyd-cert", cert, "--policyd-key", key), 422), ((), 503)]:
        gateway = start(policyd, upstream, *flags, *shown)
        assert post(gateway.match[1], json.loads(made.stdout)["key"], CHAT)[0] == status
        assert gateway.stop() == 0
    assert policyd.stop() == 0


def _make_certificate(folder: Path) -> None:
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)


def test_a_busy_port() -> None:
    """The gateway ends with 1, and names the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("policyd-gateway", "serve", "--listen", address)
    assert ended.returncode == 1
    message = ended.stderr.decode()
    assert re.fullmatch(f"Error: --listen {address} cannot be listened on: .*\n", message)


WRONG = {
    "a host without a port": (["--listen", "localhost"], {}, "--listen takes HOST:PORT"),
    "a port too large": (["--policyd", "localhost:70000"], {}, "--policyd takes HOST:PORT"),
    "beyond this machine": (["--listen", "0.0.0.0:0"], {}, "--insecure"),
    "no URL": (["--upstream", "api.openai.com"], {}, "http:// or https://"),
    "a password in the URL": (["--upstream", "https://a:b@c"], {}, "--upstream-api-key"),
    "a query in the URL": (["--upstream", "https://c/?a"], {}, "no ? or #"),
    "two slashes in its path": (["--upstream", "https://c/a//b"], {}, "plain form, '/a/b'"),
    "parameters in its path": (["--upstream", "https://c/a;p=1"], {}, "plain form, '/a'"),
    "a header without a key": (
        ["--upstream-api-key-header", "api-key"],
        {},
        "--upstream-api-key-file",
    ),
    "an unknown header": (["--upstream-api-key-header", "Cookie"], {}, "x-goog-api-key"),
    "half of TLS": (["--tls-cert", "cert.pem"], {}, "--tls-key"),
    "an unknown flag": (["--listn", "x"], {}, "--listen"),
    "an unknown variable": (
        [],
        {"POLICYD_GATEWAY_URL": "x"},
        "sets POLICYD_GATEWAY_URL, which is no setting",
    ),
    "a variable that is misspelt": (
        [],
        {"GATEWAY_LISTN": "x"},
        "did you mean POLICYD_GATEWAY_LISTEN?",
    ),
    "no file": (["--api-key-file", "/nowhere"], {}, "/nowhere cannot be read"),
    "a key of two words": ([], {"GATEWAY_API_KEY": "up-1 up-2"}, "--api-key must be one word"),
}


def test_no_certificate() -> None:
    """The gateway ends with 1 once it has its port: as a process, whose end closes the port."""
    flags = ("--tls-cert", "nowhere", "--tls-key", "nowhere")
    ended = run("policyd-gateway", "serve", "--listen", FREE, *flags)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert "cannot be read" in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()


@pytest.mark.parametrize(("flags", "env", "message"), WRONG.values(), ids=WRONG)
def test_wrong_settings(flags: list[str], env: dict[str, str], message: str) -> None:
    """Wrong settings end the gateway with 2 before it listens, with cause and fix, no traceback."""
    ended = invoke("policyd-gateway", "serve", "--listen", FREE, *flags, env=env)
    assert ended.returncode == 2
    assert ended.stdout == b""
    error = ended.stderr.decode()
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lisen: x", "did you mean listen?"),
        ("- listen", "NAME: VALUE"),
        ("listen: [", "cannot be read"),
        ("max-body: many", "give a number of bytes"),
        ("\x00", "cannot be read"),
        ("enforce-user-ids: enforce", "did you mean --default-mode of policyd serve?"),
        ("max-body: 1\nmax_body: 2", "sets max_body twice"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str) -> None:
    """A wrong --config file ends the gateway likewise."""
    config = tmp_path / "gateway.yaml"
    config.write_text(content)
    ended = invoke("policyd-gateway", "serve", "--listen", FREE, "--config", str(config))
    assert ended.returncode == 2
    assert message in ended.stderr.decode()


def test_variables_of_others() -> None:
    """Variables that Kubernetes and CGI set for a "gateway" service are no misspelt settings."""
    others = ["GATEWAY_SERVICE_HOST", "GATEWAY_PORT", "GATEWAY_PORT_80_TCP", "GATEWAY_INTERFACE"]
    options = Options("GATEWAY")
    options.option("--listen")
    options.check_environment(dict.fromkeys([*others, "GATEWAY_LISTEN"], "x"))
    with pytest.raises(SettingsError, match="GATEWAY_PORTS"):
        options.check_environment({"GATEWAY_PORTS": "x"})


def test_the_older_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    """Known names count with the older prefix too, the newer one first; other programs' variables
    stop nothing."""
    options = Options("POLICYD_GATEWAY", old="GATEWAY")

    @click.command()
    @options.option("--listen")
    @options.option("--upstream")
    def command(listen: str, upstream: str) -> None:
        click.echo(f"{listen} {upstream}")

    both = {"GATEWAY_LISTEN": "old", "POLICYD_GATEWAY_LISTEN": "new", "GATEWAY_UPSTREAM": "old"}
    options.check_environment(both)
    assert CliRunner().invoke(command, env=both).output == "new old\n"
    assert capsys.readouterr().err == ""
    options.check_environment({"GATEWAY_URL": "http://x"})
    assert "GATEWAY_URL, which is no setting and is not read" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="POLICYD_GATEWAY_URL, which is no setting"):
        options.check_environment({"POLICYD_GATEWAY_URL": "http://x"})
    # policyd's own commands run in the gateway's environment.
    Options("POLICYD", others=("POLICYD_GATEWAY_",)).check_environment(both)


@pytest.mark.parametrize(
    ("upstream", "header"),
    [
        ("https://api.openai.com", "Authorization"),
        ("https://Panda.OpenAI.Azure.com/openai", "api-key"),
        ("https://panda.openai.azure.us:443", "api-key"),
        ("https://panda.openai.azure.cn", "api-key"),
        ("https://panda.cognitiveservices.azure.com", "api-key"),
        ("https://panda.services.ai.azure.com/models", "api-key"),
        ("https://api.anthropic.com", "x-api-key"),
        ("https://api.anthropic.com./v1", "x-api-key"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "x-goog-api-key"),
        ("https://openai.azure.com.elsewhere.test", "Authorization"),
        ("https://notopenai.azure.com", "Authorization"),
        ("http://127.0.0.1:4000", "Authorization"),
    ],
)
def test_the_header_that_an_upstream_wants(upstream: str, header: str) -> None:
    """The header follows from the upstream's host, unless the operator names it."""
    assert Settings(upstream=upstream).key_header == header
    named = Settings(upstream=upstream, upstream_api_key="k", upstream_api_key_header="x-api-key")
    assert named.key_header == "x-api-key"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GATEWAY_ENFORCE_USER_IDS", "did you mean --default-mode of policyd serve?"),
        ("GATEWAY_DEFAULT_MODE", "did you mean --default-mode of policyd serve?"),
        ("POLICYD_GATEWAY_DEFAULT_MODE", "did you mean --default-mode of policyd serve?"),
        ("gateway_upstream", "did you mean POLICYD_GATEWAY_UPSTREAM?"),
        ("policyd_gateway_upstream", "did you mean POLICYD_GATEWAY_UPSTREAM?"),
    ],
)
def test_variables_that_are_not_read(name: str, message: str) -> None:
    """A variable that only looks like a setting of the gateway is rejected, with a suggestion."""
    ended = invoke("policyd-gateway", "serve", "--listen", FREE, env={name: "enforce"})
    assert ended.returncode == 2
    assert message in ended.stderr.decode()


def test_secrets_are_not_shown() -> None:
    """Settings do not show their secrets where they are printed."""
    settings = Settings(api_key="up-1", upstream_api_key="sk-1", policyd_token="t-1")
    assert not re.search("up-1|sk-1|t-1", repr(settings))


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:0", "localhost:65535"])
def test_addresses(text: str) -> None:
    """Addresses are read and written alike, IPv6 in brackets."""
    assert str(Address.parse(text, "--listen")) == text


def test_help() -> None:
    """The help names every setting with its variable."""
    shown = invoke("policyd-gateway", "serve", "--help").stdout.decode()
    for name in ("listen", "policyd", "upstream", "api-key", "max-body", "on-policy-error"):
        assert f"--{name} " in shown
        assert f"GATEWAY_{name.upper().replace('-', '_')}" in " ".join(shown.split())
    assert "https://api.openai.com" in shown
