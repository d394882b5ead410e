"""Older versions of policyd, from the repository, for tests of upgrades."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.support.processes import environment
from tests.support.requirements import beyond_pip, missing

COMMIT = "3ef5fe9"
"""The last commit whose newest form is 0005, before the database recorded its form."""
BEFORE_ROTATION = "41e6b0c"
"""One whose newest form is 0011: its keys do not rotate or expire."""


class OldVersion:
    """The packages of the version at `commit`, unpacked into `folder`."""

    def __init__(self, folder: Path, commit: str = COMMIT) -> None:
        beyond_pip("git")
        self._folder = folder
        here = Path(__file__).parents[2]
        command = ("git", "archive", commit, "policyd", "gateway", "tests")
        packed = subprocess.run(command, cwd=here, capture_output=True, check=False)
        if packed.returncode:
            missing(f"the repository has no commit {commit}: fetch all of it")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        self._command = folder / "policyd-command"
        self._command.write_text(f"#!{sys.executable}\nfrom policyd.cli import main\nmain.main()\n")
        self._command.chmod(0o700)

    def policyd(self, *words: str) -> str:
        """The output of that version's command."""
        return self.run("import sys\nfrom policyd.cli import main\nmain.main(sys.argv[1:])", *words)

    def run(self, code: str, *arguments: str) -> str:
        """The output of Python code that runs with that version's packages."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self._folder,  # Python looks there first.
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def serving(self) -> dict[str, Any]:
        """The parameters that make a Policyd of tests.support.processes one of that version."""
        # The command looks there first, and its children where they are started.
        env = {"PYTHONPATH": str(self._folder)}
        command = str(self._command)
        return {"env": env, "cwd": self._folder, "drains": False, "command": command}
