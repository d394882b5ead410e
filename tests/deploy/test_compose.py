"""deploy/compose.yaml and compose.envoy.yaml: what they start, with which settings."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli import OPTIONS as GATEWAY
from gateway.cli import main as policyd_gateway
from gateway.settings import Settings
from policyd.cli.main import main as policyd
from policyd.cli.options import OPTIONS as POLICYD
from policyd.settings import ServerSettings
from tests.deploy.tools import ROOT, run, tool

DEPLOY = ROOT / "deploy"
PASSWORD = "test"
FILES = (DEPLOY / "compose.yaml", DEPLOY / "compose.envoy.yaml")


def services() -> dict[str, dict[str, Any]]:
    """The services of both files; of the gateway, as the first has it."""
    first, second = (yaml.safe_load(file.read_text())["services"] for file in FILES)
    return dict(second | first)


@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=["gateway", "envoy"])
def test_docker_compose_reads_them(files: tuple[Path, ...]) -> None:
    """`docker compose config` accepts them, and names the services that it would start."""
    named = [word for file in files for word in ("-f", str(file))]
    command = (tool("docker-compose"), *named, "config", "--services")
    done = run(*command, POSTGRES_PASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    pep = "envoy" if len(files) > 1 else "gateway"
    assert set(done.stdout.split()) == {"policyd", pep, "postgres", "prometheus", "grafana"}


def test_a_password_is_asked_for() -> None:
    """Without a password for PostgreSQL nothing starts, and the message says what is missing."""
    done = run(tool("docker-compose"), "-f", str(FILES[0]), "config")
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD" in done.stderr


def test_every_setting_is_one() -> None:
    """Each variable of ours is a setting of the server that gets it."""
    policyd.load()
    policyd_gateway.load()
    for name, options in (("policyd", POLICYD), ("gateway", GATEWAY)):
        given = {one for one in services()[name]["environment"] if one.startswith("POLICYD")}
        assert given
        assert given <= options.variables
        options.check_environment(dict.fromkeys(given, ""))


def test_every_file_is_there() -> None:
    """Every file that is mounted into a container is in the repository."""
    for service in services().values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source


def test_the_time_to_end_is_long_enough() -> None:
    """A container is killed no sooner than drain, grace and ten seconds after it is to stop."""
    for name, settings in (("policyd", ServerSettings()), ("gateway", Settings())):
        given = services()[name]["stop_grace_period"]
        assert given == f"{settings.drain + settings.grace + 10:.0f}s"


def test_only_this_machine_reaches_it() -> None:
    """Each published port is on a loopback address, and what we run has no rights to spare."""
    for name, service in services().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        if name in ("policyd", "gateway", "envoy"):
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]


def test_envoy_gets_its_addresses(tmp_path: Path) -> None:
    """The command of the service `envoy` makes a configuration that Envoy accepts."""
    envoy = Path(sys.executable).with_name("envoy")
    if not envoy.exists():
        pytest.skip("there is no Envoy for this platform")
    [script] = services()["envoy"]["command"]
    made = tmp_path / "envoy.yaml"
    script = script.replace("/etc/envoy/policyd.yaml", str(ROOT / "integrations/envoy/envoy.yaml"))
    script = script.replace("/tmp/envoy.yaml", str(made))  # noqa: S108  # It is a path in the container.
    script = script.replace("exec envoy", f"exec {envoy} --mode validate")
    done = subprocess.run(
        ["/bin/sh", "-ec", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    listening, policyd = re.findall(r"address: (\S+), port_value: (?:8080|50051)", made.read_text())
    assert (listening, policyd) == ("0.0.0.0", "policyd")  # noqa: S104  # It is what the container listens on.
