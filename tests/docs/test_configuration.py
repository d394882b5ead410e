"""docs/configuration.md, which `make docs` generates from the declarations of the settings."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_it_has_not_drifted(capsys: pytest.CaptureFixture[str]) -> None:
    """The page matches the settings of the commands; `make docs` generates it anew."""
    runpy.run_path(str(DOCS / "tools" / "configuration.py"), run_name="__main__")
    assert capsys.readouterr().out == (DOCS / "configuration.md").read_text(encoding="utf-8")
