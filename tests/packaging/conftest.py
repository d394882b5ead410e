"""The wheel, as the tests of this folder share it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = "https://git.example.com/policyd"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the build tool that the lock holds, as for a release from SOURCE."""
    folder = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    subprocess.run(command, cwd=ROOT, env=os.environ | {"SOURCE_URL": SOURCE}, check=True)
    [built] = folder.glob("*.whl")
    return built
