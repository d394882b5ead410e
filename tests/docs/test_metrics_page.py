"""docs/metrics.md, which `make docs` generates from the catalogue of metrics."""

import subprocess
import sys
from pathlib import Path

from tests.support.processes import environment

DOCS = Path(__file__).parents[2] / "docs"


def test_it_has_not_drifted() -> None:
    """The page matches the catalogue; `make docs` generates it anew."""
    made = subprocess.run(
        [sys.executable, str(DOCS / "tools" / "metrics.py")],
        capture_output=True,
        env=environment(),
        check=True,
    )
    assert made.stdout.decode() == (DOCS / "metrics.md").read_text(encoding="utf-8")
