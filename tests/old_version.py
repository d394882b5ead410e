"""The version before the database told its form, from the repository, for tests of upgrades."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.processes import environment
from tests.requirements import missing

COMMIT = "3ef5fe9"
"""The last commit whose newest form is 0005."""


def unpack(folder: Path) -> Path:
    """Put that version's packages into `folder`, to be run from there."""
    here = Path(__file__).parent.parent
    command = ("git", "archive", COMMIT, "policyd", "gateway", "tests")
    packed = subprocess.run(command, cwd=here, capture_output=True, check=False)
    if packed.returncode:
        missing(f"the repository has no commit {COMMIT}: fetch all of it")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with that version's packages."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,  # Where Python looks first.
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
