"""`policyd config check` and `policyd-gateway config check`: what would be wrong at a start."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trustme

from policyd.store import Store
from tests.support.commands import invoke

FREE = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a certificate, its key, its authority and a token."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    other = authority.issue_cert("127.0.0.1").private_key_pem
    other.write_to_path(tmp_path / "other.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "token").write_text("0123456789abcdef")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "empty").touch(0o600)
    return tmp_path


def check(program: str, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and what is wrong by its subject; "" where nothing is."""
    done = invoke(program, "config", "check", "--json", *words)
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0)
    found = {one["subject"]: "" if one["ok"] else one["found"] for one in told["checks"]}
    return done.returncode, found


def test_nothing_is_wrong(files: Path, url: str, store: Store) -> None:
    """Everything that is named is looked at, and nothing is made."""
    before = sorted(files.iterdir())
    status, found = check(
        *("policyd", *FREE, "--database-url", url, "--metrics", "127.0.0.1:0"),
        *("--tls-cert", f"{files}/cert.pem", "--tls-key", f"{files}/key.pem"),
        *("--tls-client-ca", f"{files}/ca.pem", "--caller-token-file", f"{files}/token"),
    )
    assert (status, set(found.values())) == (0, {""})
    assert [one.split()[0] for one in found] == [
        *("--tls-cert", "--tls-client-ca", "--caller-token-file", "--admin-token-file"),
        *("--grpc", "--admin", "--metrics", "--spool", "--database-url"),
    ]
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "subject", "words"),
    [
        (("--tls-cert", "cert.pem", "--tls-key", "other.pem"), "--tls-cert", "another certificate"),
        (("--tls-cert", "no.pem", "--tls-key", "key.pem"), "--tls-cert", "cannot be read"),
        (("--tls-cert", "empty", "--tls-key", "key.pem"), "--tls-cert", "holds no certificate"),
        (("--caller-token-file", "empty"), "--caller-token-file", "holds no token"),
        (("--admin-token-file", "empty"), "--admin-token-file", "holds no token"),
    ],
)
def test_wrong_files(
    files: Path, url: str, flags: tuple[str, ...], subject: str, words: str
) -> None:
    """It names each unusable file by its setting, reports the rest too, and exits with status 2."""
    given = [word if word.startswith("--") else f"{files}/{word}" for word in flags]
    status, found = check("policyd", *FREE, "--database-url", url, *given)
    [wrong] = [name for name, problem in found.items() if problem]
    assert status == 2
    assert wrong.startswith(subject)
    assert words in found[wrong]
    assert found["--database-url"] == ""


def test_a_database_that_cannot_be_used(tmp_path: Path) -> None:
    """It reports a damaged file, a folder that does not exist, and another database's spool."""
    (tmp_path / "policyd.db").write_bytes(b"no database" * 1000)
    _, found = check("policyd", *FREE, "--database-url", f"sqlite:///{tmp_path}/policyd.db")
    assert "damaged" in found["--database-url"]
    _, found = check("policyd", *FREE, "--database-url", f"sqlite:///{tmp_path}/no/policyd.db")
    assert "there is no folder" in found["--database-url"]
    status, found = check(
        "policyd", *FREE, "--database-url", "postgresql+psycopg://u@127.0.0.1:1/d"
    )
    assert (status, "cannot be used" in found["--database-url"]) == (2, True)


def test_ports_of_others(tmp_path: Path) -> None:
    """It reports a port that is taken, unless the server is said to run already."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        words = (
            "--grpc",
            at,
            "--admin",
            "127.0.0.1:0",
            "--database-url",
            f"sqlite:///{tmp_path}/d",
        )
        status, found = check("policyd", *words)
        assert (status, bool(found[f"--grpc {at}"])) == (2, True)
        assert check("policyd", *words, "--running")[0] == 0
        assert check("policyd-gateway", "--listen", at)[0] == 2
        assert check("policyd-gateway", "--listen", "127.0.0.1:0", "--metrics", at)[0] == 2
        assert check("policyd-gateway", "--listen", at, "--running")[0] == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tls-cert", "cert.pem", "--tls-key", "other.pem"), "another certificate"),
        (("--policyd-tls", "--policyd-ca", "empty"), "holds no certificate"),
        (
            ("--policyd-tls", "--policyd-cert", "cert.pem", "--policyd-key", "other.pem"),
            "--policyd-key",
        ),
    ],
)
def test_the_gateways_files(files: Path, flags: tuple[str, ...], words: str) -> None:
    """The gateway's certificates are looked at, those that it shows to policyd too."""
    given = [word if word.startswith("--") else f"{files}/{word}" for word in flags]
    status, found = check("policyd-gateway", "--listen", "127.0.0.1:0", *given)
    assert status == 2
    assert any(words in problem for problem in found.values())


def test_for_people(files: Path, url: str) -> None:
    """Each line begins with ok or wrong; settings that do not fit together stand alone."""
    done = invoke("policyd", "config", "check", *FREE, "--database-url", url)
    assert {line.split()[0] for line in done.stdout.decode().splitlines()} == {"ok", "Nothing"}
    config = files / "policyd.yaml"
    config.write_text("log-retntion: 3\n")
    refused = invoke("policyd", "config", "check", "--config", str(config))
    assert refused.returncode == 2
    assert "did you mean log-retention?" in refused.stderr.decode()
    empty = ("--upstream-api-key-file", str(files / "empty"))
    refused = invoke("policyd-gateway", "config", "check", *empty)
    assert (refused.returncode, b"is empty" in refused.stderr) == (2, True)
