"""SIGHUP with unusable files: one clear line says why, and the running processes go on.

Every program is a real process. tests/faults/test_rolling.py has what SIGHUP replaces.
"""

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP
from typing import Any

import pytest
import trustme

from tests.faults.test_rolling import REPLACED, children, told
from tests.support.processes import Policyd, Program
from tests.support.stack import Gateway
from tests.support.waiting import until

REFUSED = "no more workers are replaced, and those that run go on: "
PAIR = "the key belongs to another certificate"

# The file that is spoilt, what it then holds, and what the log says of it.
SPOILT = {
    "policyd": [
        ("config.yaml", "log-retention: [90\n", "cannot be read"),
        ("config.yaml", "log-retention: " + "[" * 3000, "nested too deeply"),
        ("config.yaml", 'tls-cert: "a\\0b"\n', "holds a NUL"),
        ("config.yaml", 'tls-key: "\\ud800"\n', "half a character"),
        ("config.yaml", "log-retention: -1\n", "-1.0 is not in the range"),
        ("config.yaml", "log-retntion: 9\n", "did you mean log-retention?"),
        ("key.pem", "of another certificate", f"key.pem cannot be used ({PAIR})"),
        ("cert.pem", "", "cert.pem holds no certificate"),
        ("cert.pem", None, "cert.pem cannot be read"),
        ("ca.pem", "garbage", "ca.pem holds no certificate that can be read"),
        ("ca.pem", None, "ca.pem cannot be read"),
        ("token", "", "token holds no token of 16 or more characters"),
        ("token", None, "token cannot be read"),
    ],
    "gateway": [
        ("config.yaml", "grace: [20\n", "cannot be read"),
        ("config.yaml", "grace: " + "[" * 3000, "nested too deeply"),
        ("config.yaml", 'tls-cert: "a\\0b"\n', "holds a NUL"),
        ("config.yaml", 'tls-key: "\\ud800"\n', "half a character"),
        ("config.yaml", "grace: -1\n", "-1.0 is not in the range"),
        ("config.yaml", "grade: 9\n", "did you mean grace?"),
        ("key.pem", "of another certificate", f"key.pem cannot be used ({PAIR})"),
        ("cert.pem", "", "cert.pem holds no certificate"),
        ("cert.pem", None, "cert.pem cannot be read"),
        ("ca.pem", "garbage", "ca.pem holds no certificate that can be read"),
        ("ca.pem", None, "ca.pem cannot be read"),
        ("token", "", "token is empty"),
        ("token", None, "token cannot be read"),
    ],
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder with the files that both servers read at SIGHUP."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "config.yaml").write_text("log-level: info\n")
    (tmp_path / "token").write_text("0123456789abcdef")
    (tmp_path / "token").chmod(0o600)
    return tmp_path


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=sorted(SPOILT))
def program(
    request: pytest.FixtureRequest, start: Callable[..., Any], files: Path, workers: int
) -> Iterator[tuple[str, Program, str]]:
    """The name of a server, the server, and the URL at which it answers probes."""
    common = (*("--config", str(files / "config.yaml")), *("--workers", str(workers)))
    tls = ("--tls-cert", str(files / "cert.pem"), "--tls-key", str(files / "key.pem"))
    if request.param == "policyd":
        other = ("--tls-client-ca", str(files / "ca.pem"), "--caller-token-file")
        http = ("--http", "127.0.0.1:0")
        one = start(Policyd, files, *common, *tls, *other, str(files / "token"), *http)
        yield "policyd", one, f"https://{one.http}/readyz"
        return
    asked = ("--policyd-tls", "--policyd-ca", str(files / "ca.pem"))
    secret = ("--policyd-token-file", str(files / "token"))
    flags = (*common, *tls, *asked, *secret)
    one = start(Gateway, "127.0.0.1:1", "http://127.0.0.1:1", *flags)
    yield "gateway", one, f"{one.url}/healthz"


@pytest.mark.timeout(300)
async def test_refused(program: tuple[str, Program, str], files: Path, workers: int) -> None:
    """An unusable file replaces nothing, one line of the log says why, and policyd and the gateway
    answer as before; a good file is taken after that."""
    name, server, url = program
    before = children(server)
    for file, content, words in SPOILT[name]:
        path = files / file
        was = _spoil(path, content)
        lines = len(server.errors)
        server.send(SIGHUP)
        await until(lambda n=lines: any(REFUSED in line for line in server.errors[n:]))
        [line] = [one for one in server.errors[lines:] if REFUSED in one]
        assert words in line, line
        assert "Traceback" not in "".join(server.errors)
        assert children(server) == before
        path.write_bytes(was)
        path.chmod(0o600)
        assert _answers(url, files), line
    server.send(SIGHUP)
    await until(lambda: told(server, REPLACED) == 1)
    assert len(children(server)) == workers
    assert _answers(url, files)


def _spoil(path: Path, content: str | None) -> bytes:
    """Returns what the file held."""
    was = path.read_bytes()
    if content == "of another certificate":
        trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(path)
    elif content is None:
        path.unlink()
    else:
        path.write_text(content)
    return was


def _answers(url: str, files: Path) -> bool:
    """Whether the server answers by the certificate that it had at the start."""
    context = ssl.create_default_context(cafile=files / "ca.pem")
    context.load_cert_chain(files / "cert.pem", files / "key.pem")
    try:
        with urllib.request.urlopen(url, timeout=60, context=context):
            return True
    except urllib.error.HTTPError:
        return True  # It is not ready, and says so.
