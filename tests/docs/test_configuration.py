"""docs/configuration.md, which `make docs` generates from the declarations of the settings."""

import subprocess
import sys
from pathlib import Path

from tests.support.processes import environment

DOCS = Path(__file__).parents[2] / "docs"


def test_it_has_not_drifted() -> None:
    """The page matches the settings of the commands; `make docs` generates it anew."""
    made = subprocess.run(
        [sys.executable, str(DOCS / "tools" / "configuration.py")],
        capture_output=True,
        env=environment(),
        check=True,
    )
    assert made.stdout.decode() == (DOCS / "configuration.md").read_text(encoding="utf-8")
