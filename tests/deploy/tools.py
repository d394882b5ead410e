"""What reads compose files and charts: `make test-all` installs it into .venv-deploy."""

import subprocess
from pathlib import Path

from tests.support import requirements

ROOT = Path(__file__).parents[2]
_TOOLS = ROOT / ".venv-deploy/bin"


def tool(name: str) -> str:
    """The path of a tool."""
    return str(requirements.file(_TOOLS / name, "run make test-all, which installs it"))


def run(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command's outcome. It gets `environment` and a PATH."""
    return subprocess.run(
        command,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
