"""What reads compose files and charts: `make test-all` installs it into .venv-deploy."""

import subprocess
from pathlib import Path

from tests.support import requirements

ROOT = Path(__file__).parents[2]
_TOOLS = ROOT / ".venv-deploy"


def tool(name: str) -> str:
    """The path of a tool."""
    path = _TOOLS / "bin" / name
    if name == "docker-compose":
        # The command of that package hides the exit status of the program.
        found = _TOOLS.glob(f"lib/python3*/site-packages/compose/{name}")
        path = next(found, path)
    return str(requirements.file(path, "run make test-all, which installs it"))


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
