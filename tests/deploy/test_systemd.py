"""The systemd units, as systemd's own tools read them."""

import subprocess
from pathlib import Path

import pytest

from gateway.settings import Settings
from policyd.settings import ServerSettings
from tests.deploy.tools import ROOT
from tests.support import requirements
from tests.support.processes import BIN

UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
NAMES = [one.stem for one in UNITS]
MOST_EXPOSED = 20
"""Tenths of systemd's measure of exposure, which is 0.0 to 10.0."""


@pytest.fixture(params=UNITS, ids=NAMES)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit that runs the commands of this environment."""
    original: Path = request.param
    text = original.read_text()
    assert "/opt/policyd/bin/" in text
    file = tmp_path / original.name
    file.write_text(text.replace("/opt/policyd/bin", str(BIN)))
    return file


def analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    program = requirements.program("systemd-analyze", "systemd")
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_systemd_accepts_it(unit: Path) -> None:
    """`systemd-analyze verify` finds nothing that it does not know or that cannot work."""
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_has_few_rights(unit: Path) -> None:
    """systemd rates the unit's exposure as low."""
    limit = f"--threshold={MOST_EXPOSED}"
    done = analyze("security", "--offline=true", "--no-pager", limit, unit)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", UNITS, ids=NAMES)
def test_it_has_time_to_end(file: Path) -> None:
    """systemd kills no sooner than drain, grace and ten seconds after SIGTERM."""
    settings = ServerSettings() if file.stem == "policyd" else Settings()
    lines = file.read_text().splitlines()
    assert f"TimeoutStopSec={settings.drain + settings.grace + 10:.0f}" in lines
    assert "Type=notify" in lines
    assert "LimitNOFILE=65536" in lines
