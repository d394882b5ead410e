"""`policyd doctor` and `policyd-gateway doctor` on sound, missing and faulty deployments."""

import json
import os
import socket
import subprocess
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from policyd.command import doctor, machine
from policyd.command.address import Address
from policyd.command.config_checks import Check
from policyd.decision_log import spool as spools
from policyd.errors import SettingsError
from tests.support.commands import invoke
from tests.support.followers import token_file
from tests.support.peers import KINDS
from tests.support.processes import Policyd
from tests.support.running import beside


def examined(*command: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any], str]:
    """The exit status, what each check found by the first word of its subject, and all output."""
    done = invoke(*command, "--json", env=env)
    text = done.stdout.decode()
    checks = json.loads(text)["checks"]
    found = {one["subject"].split(" ")[0]: (one["result"], one["found"]) for one in checks}
    return done.returncode, found, text


def settings_of(policyd: Policyd) -> list[str]:
    """The flags by which that policyd runs."""
    return [
        *("--grpc", str(policyd.grpc), "--admin", str(policyd.admin)),
        *("--database-url", policyd.database_url),
        *("--admin-token-file", str(policyd.folder / "admin-token")),
        *("--spool", str(policyd.folder / "policyd.db-spool")),
    ]


@pytest.fixture
def upstream() -> Any:
    """The URL of something that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_policyd_is_well(policyd: Policyd, enforcing: str, tmp_path: Path) -> None:
    """A policyd that runs passes, with an API key that is in force and shown nowhere."""
    (tmp_path / "key").write_text(f"{enforcing}\n")
    flags = settings_of(policyd)
    status, found, text = examined("policyd", "doctor", *flags, "--key-file", str(tmp_path / "key"))
    assert status == 0, text
    assert {result for result, _ in found.values()} <= {"ok", "warning"}
    assert found["API"][1].startswith("it is in force, as key_")
    assert found["--spool"][0] == found["clock"][0] == found["--database-url"][0] == "ok"
    assert enforcing not in text
    shown = invoke("policyd", "doctor", *flags, env={"POLICYD_KEY": "up-wrong"})
    assert shown.returncode == 1
    assert b"failed   API key: it is not in force in this database" in shown.stdout
    assert b"up-wrong" not in shown.stdout


def test_policyd_against_nothing(tmp_path: Path) -> None:
    """Where nothing runs, each thing that is missing is named with what to do."""
    flags = ("--database-url", f"sqlite:///{tmp_path}/no.db", "--grpc", "127.0.0.1:1")
    others = ("--admin", "127.0.0.1:2", "--metrics", "127.0.0.1:3")
    status, found, _ = examined("policyd", "doctor", *flags, *others)
    assert status == 1
    assert found["--grpc"][0] == found["--metrics"][0] == "failed"
    assert "start policyd serve" in found["--grpc"][1]
    assert "start policyd serve, which makes it" in found["--database-url"][1]
    assert found["clock"] == ("failed", "this is not known, as the database cannot be used")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gateway_is_well(policyd: Policyd, enforcing: str, upstream: str, kind: str) -> None:
    """A gateway that reaches policyd passes, and its key is asked for and not shown."""
    asked = str(policyd.grpc) if kind == "grpc" else f"http://{policyd.http}"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        flags = ("--listen", place, "--policyd", asked, "--upstream", upstream)
        env = {"POLICYD_GATEWAY_API_KEY": enforcing}
        status, found, text = examined("policyd-gateway", "doctor", *flags, env=env)
        refused = {"POLICYD_GATEWAY_API_KEY": "up-another"}
        other, wrong, _ = examined("policyd-gateway", "doctor", *flags, env=refused)
    assert status == 0, text
    assert found["API"] == ("ok", "it is in force")
    assert enforcing not in text
    assert (other, wrong["API"][0]) == (1, "failed")


def test_the_gateway_against_nothing() -> None:
    """Where nothing runs, each check fails by itself, with what to do."""
    flags = ("--listen", "127.0.0.1:1", "--policyd", "127.0.0.1:2", "--upstream", "http://[::1]:3")
    status, found, _ = examined("policyd-gateway", "doctor", *flags, "--metrics", "127.0.0.1:4")
    assert status == 1
    failed = {subject for subject, (result, _) in found.items() if result == "failed"}
    assert failed == {"--listen", "--metrics", "--policyd", "--upstream"}
    assert "start policyd there" in found["--policyd"][1]


def test_a_gateway_that_decides_by_itself(tmp_path: Path, upstream: str) -> None:
    """Doctor reports a policyd whose database the spool does not belong to, and a disk with less
    room than the spool may take."""
    spool = tmp_path / "gateway-spool"
    spools.claim(spool)
    spools.prepare(spool, "ab" * 16)
    token = token_file(tmp_path)
    with beside(tmp_path, local_token_file=token) as running:
        flags = ("--policyd", str(running.grpc), "--upstream", upstream, "--decide", "local")
        shown = ("--policyd-token-file", str(token), "--spool-limit", str(2**60))
        wrong = examined("policyd-gateway", "doctor", *flags, *shown, "--spool", str(spool))[1]
        new = ("--spool", str(tmp_path / "new"))
        right = examined("policyd-gateway", "doctor", *flags, *shown, *new)[1]
    assert wrong["--policyd"][0] == "failed"
    assert "give the gateway another --spool" in wrong["--policyd"][1]
    assert wrong["room"][0] == "warning"
    assert "--spool-limit" in wrong["room"][1]
    assert right["--policyd"][0] == "ok"


def test_a_wrong_token(tmp_path: Path, upstream: str) -> None:
    """Doctor reports a wrong token, and that others can read its file."""
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"{name}-{'x' * 20}\n")
        (tmp_path / name).chmod(0o600 if name == "right" else 0o644)
    with beside(tmp_path, caller_token_file=tmp_path / "right") as running:
        flags = ("--policyd", str(running.grpc), "--upstream", upstream)
        token = ("--policyd-token-file", str(tmp_path / "wrong"))
        status, found, text = examined("policyd-gateway", "doctor", *flags, *token)
    assert status == 1
    assert "as --caller-token-file" in found["--policyd"][1]
    assert f"chmod 600 {tmp_path / 'wrong'}" in found["--policyd-token-file"][1]
    assert "xxxx" not in text


def test_little_room(tmp_path: Path) -> None:
    """A folder that takes no file fails; one with less room than may be needed is warned of."""
    with pytest.raises(SettingsError, match="cannot be written to"):
        machine.room(Path("/proc/self"), "--spool", 1)
    assert "are free" in machine.room(tmp_path, "--spool", 1)
    told = machine.room(tmp_path, "--spool", 2**60)
    assert isinstance(told, doctor.Doubt)
    assert "--spool-limit" in told


@pytest.mark.programs
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a disk that is full soon")
def test_a_full_disk(tmp_path: Path) -> None:
    """Doctor reports a spool on a full disk and says what to do; it needs no room itself."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(512)):
                pass
        flags = ("--database-url", f"sqlite:///{tmp_path}/no.db", "--spool", str(disk / "spool"))
        status, found, _ = examined("policyd", "doctor", *flags)
    finally:
        subprocess.run(("umount", "--lazy", str(disk)), check=True)
    assert (status, found["--spool"][0]) == (1, "failed")
    assert f"make room in {disk}" in found["--spool"][1]


@pytest.mark.parametrize(
    ("left", "result"),
    [(timedelta(days=90), "ok"), (timedelta(days=3), "warning"), (-timedelta(days=1), "failed")],
)
def test_certificates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: timedelta, result: str
) -> None:
    """Doctor names the last day of a certificate: it warns shortly before, and fails afterwards."""
    until = datetime.now(UTC) + left
    issued = trustme.CA().issue_cert("policyd", not_after=until)
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    checks = machine.certificates({"--tls-cert": tmp_path / "cert.pem", "--other": None})
    if result == "failed":
        with pytest.raises(SystemExit):
            doctor.examine(checks, as_json=False)
    else:
        doctor.examine(checks, as_json=False)
    told = capsys.readouterr().out
    assert told.startswith(result)
    assert f"{until:%Y-%m-%d}" in told


def test_what_is_no_certificate(tmp_path: Path) -> None:
    """Half a certificate, and something else, are named."""
    pem = trustme.CA().cert_pem.bytes()
    for content in (b"", b"text", pem[:300], pem.replace(b"MII", b"AAA")):
        (tmp_path / "cert.pem").write_bytes(content)
        (check,) = machine.certificates({"--tls-cert": tmp_path / "cert.pem"})
        with pytest.raises(SettingsError, match=r"--tls-cert .* holds no certificate"):
            check.look()


def test_ports() -> None:
    """A port that outgoing connections may take is warned of, and others are not."""
    inside = machine.ports({"--grpc": Address("127.0.0.1", 50051)}).look()
    outside = machine.ports({"--grpc": Address("127.0.0.1", 1023)}).look()
    assert not isinstance(outside, doctor.Doubt)
    if isinstance(inside, doctor.Doubt):
        assert "ip_local_reserved_ports=50051" in inside


def test_a_check_that_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    """A check that does not end fails, and those after it run."""
    ending = threading.Event()

    def hang() -> str:
        ending.wait(60)
        return "late"

    checks = [Check("hangs", hang), Check("works", lambda: "well")]
    with pytest.raises(SystemExit) as ended:
        doctor.examine(checks, as_json=False, deadline=0.1)
    ending.set()
    assert ended.value.code == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("failed   hangs: no answer within 0.1 s")
    assert second == "ok       works: well"
