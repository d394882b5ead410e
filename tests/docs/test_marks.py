"""Each exception from a tool's rules carries its reason."""

import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from tests.docs.test_links import ROOT, files

MARK = re.compile(r"# (?:noqa|type: ignore)\b")
# A reason stands behind a second `#`, as ruff and mypy have it, or behind a dash.
WITH_REASON = re.compile(r"# (?:noqa: [A-Z0-9, ]+?|type: ignore\[[a-z, -]+\])(?:  # | - )\S")
FILES = [
    file
    for file in files(".py")
    # Generated.
    if not file.is_relative_to(ROOT / "policyd" / "v1")
]


def bare(file: Path) -> Iterator[int]:
    """The lines with a mark that gives no reason, in itself or in a comment in the line above. Such
    a comment holds for marks in several lines on end.
    """
    text = file.read_text()
    if not MARK.search(text):
        return
    lines = text.splitlines()
    told = -1
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type == tokenize.COMMENT and MARK.match(token.string):
            line = token.start[0]
            if told == line - 1 or lines[line - 2].lstrip().startswith("# "):
                told = line
            elif not WITH_REASON.match(token.string):
                yield line


@pytest.mark.parametrize("folder", sorted({file.relative_to(ROOT).parts[0] for file in FILES}))
def test_a_mark_has_its_reason(folder: str) -> None:
    """`# noqa` and `# type: ignore` say why, behind a second `#` or in the comment line above."""
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in FILES
        if file.is_relative_to(ROOT / folder)
        for line in bare(file)
    ]
    assert found == []
