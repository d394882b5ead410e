"""`policyd demo`, as a person meets it who tries policyd for the first time."""

import itertools
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from string import Template
from urllib.parse import urlencode

import pytest

from tests.support.processes import Program, environment, run
from tests.support.stack import Background, Upstream
from tests.support.waiting import wait_until

GOLDEN = Path(__file__).parents[1] / "golden" / "no_user.json"
FIRST_HEADERS = [
    "Access-Control-Allow-Headers: *",
    "Access-Control-Allow-Origin: *",
    "Access-Control-Allow-Methods: OPTIONS,POST,GET",
    "Content-Type: application/json",
]
FREE = "127.0.0.1:0"


class Demo(Program):
    """`policyd demo`, and what it has printed."""

    def __init__(self, data: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        super().__init__(
            *("policyd", "demo", "--data", str(data)),
            *("--gateway", FREE, "--grpc", FREE, "--console", FREE, *flags),
            ready="Ctrl-C stops all of it",
            env=env,
        )
        self.text = "".join(self.output)
        self.keys = set(re.findall(r"up-\w+", self.text))
        self.blocked, self.passes = re.findall(r"^ *(curl .*)$", self.text, re.MULTILINE)


@contextmanager
def demo(
    data: Path, *flags: str, env: Mapping[str, str] | None = None, quiet: bool = True
) -> Iterator[Demo]:
    """A running demo, which must end well, and print nothing on stderr if it is to be `quiet`."""
    running = Demo(data, *flags, env=env)
    try:
        yield running
    finally:
        status = running.stop(signal.SIGINT)
    assert status == 0, running.errors
    assert not (quiet and running.errors)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """An upstream other than the demo's own."""
    with Background() as background, Upstream(background) as running:
        yield running


def paste(command: str, env: Mapping[str, str] | None = None) -> tuple[int, list[str], bytes]:
    """Run a printed curl line in a shell: the status, the lines of headers, and the body."""
    if shutil.which("curl") is None:
        return imitate(command, env or {})
    shell = ["sh", "-c", command]
    done = subprocess.run(shell, capture_output=True, env=environment(env), timeout=60, check=True)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), headers, body


def imitate(command: str, env: Mapping[str, str]) -> tuple[int, list[str], bytes]:
    """Send the request that curl would send, where curl is not installed."""
    try:
        answer = urllib.request.urlopen(as_request(command, env), timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        lines = [f"{name}: {value}" for name, value in answer.headers.items()]
        return answer.status, lines, answer.read()


def as_request(command: str, env: Mapping[str, str]) -> urllib.request.Request:
    """The request that a printed curl line sends."""
    words = shlex.split(Template(command).safe_substitute(env))
    values: dict[str, list[str]] = {"-H": [], "-d": []}
    for option, value in itertools.pairwise(words):
        values.get(option, []).append(value)
    headers = dict(header.split(": ") for header in values["-H"])
    return urllib.request.Request(words[2], values["-d"][0].encode(), headers)


def test_the_printed_requests(tmp_path: Path) -> None:
    """Of the printed requests, pasted as they are, the first is denied with the exact error, and
    the second is answered.
    """
    with demo(tmp_path / "data") as running:
        status, headers, body = paste(running.blocked)
        assert (status, headers[:4]) == (422, FIRST_HEADERS)
        assert body == GOLDEN.read_bytes()
        status, _, body = paste(running.passes)
        assert (status, json.loads(body)["object"]) == (200, "chat.completion")


def test_a_second_start(tmp_path: Path) -> None:
    """A second start keeps the data and does not show the key again; the key still works."""
    with demo(tmp_path) as first:
        (key,) = first.keys
    with demo(tmp_path) as second:
        assert not second.keys
        assert "policyd keys create" in second.text
        assert paste(second.blocked, {"POLICYD_KEY": key})[0] == 422
        assert paste(second.passes, {"POLICYD_KEY": key})[0] == 200


def test_the_command_for_another_key(tmp_path: Path) -> None:
    """The command that the second start prints makes a key that works in place of the first."""
    data = tmp_path / "a folder"
    with demo(data):
        pass
    with demo(data) as second:
        printed = re.search(r"^ *(\S*policyd keys create .*)$", second.text, re.MULTILINE)
        assert printed
        made = run(*shlex.split(printed[1].replace("NAME", "another")))
        (key,) = re.findall(r"up-\w+", made.stdout.decode())
        wait_until(lambda: paste(second.passes, {"POLICYD_KEY": key})[0] == 200)
        assert paste(second.blocked, {"POLICYD_KEY": key})[0] == 422


@pytest.mark.parametrize("flag", ["--gateway", "--grpc", "--console"])
def test_a_busy_port(tmp_path: Path, flag: str) -> None:
    """A busy port is reported with the flag to change it, and no line looks like success."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        busy = f"127.0.0.1:{stranger.getsockname()[1]}"
        places = {"--gateway": FREE, "--grpc": FREE, "--console": FREE} | {flag: busy}
        flags = [word for pair in places.items() for word in pair]
        done = run("policyd", "demo", "--data", str(tmp_path), *flags)
    assert done.returncode == 1
    assert f"{flag} {busy}" in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert not done.stdout


WRONG: list[tuple[list[str], dict[str, str], str]] = [
    (["--upstream", "nonsense"], {}, "--upstream takes an http"),
    (["--gateway", "nowhere"], {}, "--gateway takes HOST:PORT"),
    (["--gateway", "0.0.0.0:0"], {}, "--gateway 0.0.0.0:0"),
    (["--grpc", "0.0.0.0:0"], {}, "--grpc 0.0.0.0:0"),
    (["--console", "0.0.0.0:0"], {}, "--console 0.0.0.0:0"),
    ([], {"OPENAI_API_KEY": "two words"}, "OPENAI_API_KEY"),
]


def test_wrong_settings(tmp_path: Path) -> None:
    """A wrong setting is reported without a traceback, and the next start still shows the key."""
    for flags, env, message in WRONG:
        places = ("--data", str(tmp_path), "--gateway", FREE, "--grpc", FREE, "--console", FREE)
        done = run("policyd", "demo", *places, *flags, env=env)
        printed = done.stderr.decode()
        assert "Traceback" not in printed
        assert (done.returncode, message in printed) == (2, True), printed
    with demo(tmp_path) as at_last:
        assert at_last.keys


def test_the_console(tmp_path: Path) -> None:
    """The first start prints the link that sets the console's password.

    Its snippets name the gateway.
    """
    with demo(tmp_path) as running:
        (link,) = re.findall(r"http://\S+/first-password\S+", running.text)
        with urllib.request.urlopen(link, timeout=60) as page:
            assert b"Set the administrator" in page.read()
        (gateway,) = re.findall(r"The gateway listens on (\S+);", running.text)
        data = {"password": (tmp_path / "admin-token").read_text().strip()}
        console = link.partition("/first-password")[0]
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        browser.addheaders = [("Origin", console)]
        browser.open(f"{console}/sign-in", urlencode(data).encode(), timeout=60).close()
        with browser.open(f"{console}/keys", b"name=another", timeout=60) as made:
            assert f"{gateway}/v1/chat/completions" in made.read().decode()
        with browser.open(f"{console}/logs", timeout=60) as logs:
            assert ">Sample<" in logs.read().decode()
        with browser.open(f"{console}/", timeout=60) as dashboard:
            assert "policyd demo</code> made up" in dashboard.read().decode()


def test_sigterm(tmp_path: Path) -> None:
    """SIGTERM ends the demo as Ctrl-C does: with status 0 and without a message."""
    running = Demo(tmp_path)
    assert running.stop(signal.SIGTERM) == 0
    assert not running.errors


def test_stopping_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    """Ctrl-C lets the stream come to its end, and the demo says what it waits for."""
    with demo(tmp_path, quiet=False) as running:
        line = running.passes.replace('{"model"', '{"stream": true, "model"')
        with urllib.request.urlopen(as_request(line, {}), timeout=60) as stream:
            first = stream.readline()
            running.send(signal.SIGINT)
            rest = stream.read()
    assert first.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")
    (line,) = running.errors
    assert "waits up to 20 s for requests under way (1): a second signal cuts them" in line


PROVIDER_KEY = "sk-proj-0123456789"


def test_with_a_provider_key(tmp_path: Path, upstream: Upstream) -> None:
    """A provider's key replaces the client's upstream, and is shown and stored nowhere."""
    env = {"OPENAI_API_KEY": PROVIDER_KEY, "OPENAI_BASE_URL": f"{upstream.url}/v1"}
    with demo(tmp_path, "--log-level", "debug", env=env, quiet=False) as running:
        assert upstream.url in running.text
        assert paste(running.blocked)[0] == 422
        assert not upstream.received
        status, _, body = paste(with_own_key(running.passes))
    assert status == 200
    (received,) = upstream.received
    assert received.header(b"authorization") == f"Bearer {PROVIDER_KEY}"
    assert not [name for name, _ in received.headers if name.startswith(b"x-usagepanda")]
    printed = "".join([*running.output, *running.errors, body.decode()])
    assert PROVIDER_KEY not in printed
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert PROVIDER_KEY.encode() not in stored


@pytest.mark.parametrize("env", [{}, {"OPENAI_API_KEY": PROVIDER_KEY}])
def test_with_another_upstream(tmp_path: Path, upstream: Upstream, env: dict[str, str]) -> None:
    """The upstream of --upstream gets the client's own key, and never the one for OpenAI."""
    with demo(tmp_path, "--upstream", upstream.url, env=env) as running:
        assert paste(with_own_key(running.passes))[0] == 200
        assert paste(running.passes)[0] == 200
    own, none = (received.header(b"authorization") for received in upstream.received)
    assert (own, none) == ("Bearer sk-own", "")


def with_own_key(command: str) -> str:
    """A printed curl line with the client's own provider key."""
    return command.replace(" -d ", " -H 'Authorization: Bearer sk-own' -d ")


def test_the_sample(tmp_path: Path) -> None:
    """A new demo has a sample of traffic, marked as such; --no-sample leaves it out."""
    for flags, is_there in (((), True), (("--no-sample",), False)):
        data = tmp_path / f"data{is_there}"
        places = ("--gateway", FREE, "--grpc", FREE, "--console", FREE)
        demo = Program("policyd", "demo", "--data", str(data), *places, *flags, ready="API key")
        listed = run("policyd", "logs", "export", "--database-url", f"sqlite:///{data}/policyd.db")
        assert demo.stop() == 0, demo.errors
        entries = [json.loads(line) for line in listed.stdout.splitlines()]
        assert all(entry["sample"] for entry in entries)
        assert {"allowed", "would_deny", "denied"} == {
            e["verdict"] for e in entries
        } or not is_there
        assert bool(entries) is is_there


def test_metrics(tmp_path: Path) -> None:
    """With --metrics, one page has the metrics of policyd and of the gateway."""
    with demo(tmp_path, "--metrics", FREE) as running:
        found = re.search(r"^Metrics, for Prometheus: (\S+)$", running.text, re.MULTILINE)
        assert found
        status, _, _ = paste(running.blocked)
        assert "422" in str(status)
        wanted = ('policyd_gateway_requests_total{by="policyd"', "policyd_spool_bytes 0.0")
        until = time.monotonic() + 60
        page = ""
        while not all(one in page for one in wanted):
            assert time.monotonic() < until, page
            with urllib.request.urlopen(found[1], timeout=60) as answer:
                page = answer.read().decode()
