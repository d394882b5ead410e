"""tests/support/equivalents.yaml explains changes of lines that are still in the code."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.mutants import EQUIVALENTS

ROOT = Path(__file__).parents[2]
CHANGES = [
    pytest.param(entry["module"], change, id=f"{entry['module']}-{number}")
    for entry in yaml.safe_load(EQUIVALENTS.read_text())
    for number, change in enumerate(entry["changes"])
]


@pytest.mark.parametrize(("module", "change"), CHANGES)
def test_the_line_is_there(module: str, change: dict[str, Any]) -> None:
    """Each line is in its module, and each change has a reason."""
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
    assert " ".join(change["was"].split()) in " ".join(source.split())
    assert change["why"]
    assert change["was"] not in change.get("now", [])
