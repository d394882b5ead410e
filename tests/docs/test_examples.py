"""The examples of the documentation do what the pages state."""

import json
import re
from pathlib import Path
from typing import Any

from tests.support.processes import Policyd

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "no_user.json"


async def test_asking_in_python(policyd: Policyd) -> None:
    """The function of docs/callers.md returns the denial of a request without a user, or None."""
    page = (ROOT / "docs" / "callers.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    example: dict[str, Any] = {}
    exec(program.replace("127.0.0.1:50051", policyd.grpc), example)  # noqa: S102  # It runs a page of ours.
    key = policyd.create_key("enforce")
    assert await example["denial"](key, False) == (422, GOLDEN.read_bytes())
    assert await example["denial"](key, True) is None


def test_denial_of_the_readme() -> None:
    """README.md shows the denial to the byte."""
    assert f"\n\n{GOLDEN.read_text()}\n```" in (ROOT / "README.md").read_text()


def test_number_of_vectors() -> None:
    """The pages state the number of vectors."""
    files = (ROOT / "tests" / "vectors").glob("*.json")
    count = sum(len(json.loads(file.read_text())["vectors"]) for file in files)
    assert f"[{count} conformance vectors]" in (ROOT / "README.md").read_text()
    assert f"are {count} requests" in (ROOT / "docs" / "callers.md").read_text()
