"""docs/observability.md explains every warning and error that policyd and its gateway log."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observability.md").read_text()
LEVELS = ("warning", "error", "exception", "critical")
# The beginnings of lines whose whole text is an error's or a state's.
MADE_ELSEWHERE = (
    "the decision log cannot",
    "the settings are stale:",
    "the settings are fresh again",
)


def messages() -> Iterator[tuple[str, str]]:
    """Each place where a line is logged, and its text with … for the parts that vary."""
    for folder in ("policyd", "gateway"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for call in ast.walk(ast.parse(file.read_text())):
                if text := logged(call):
                    yield f"{file.relative_to(ROOT)}:{getattr(call, 'lineno', 0)}", text


def logged(node: ast.AST) -> str | None:
    """The text that a call logs; None for any other node."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    receiver = ast.unparse(node.func.value).lower()
    is_tell = (
        node.func.attr == "_tell"
    )  # This call logs its first argument, at most every few seconds.
    if not is_tell and not (node.func.attr in LEVELS and "log" in receiver):
        return None
    template = node.args[0] if node.args else None
    if not isinstance(template, ast.Constant) or not isinstance(template.value, str):
        return None
    text = re.sub(r"%[-+#0-9.]*[a-z]", "…", template.value)
    return None if is_tell and "…" not in text else text


@cache
def found() -> list[tuple[str, str]]:
    """The places and texts that need a row."""
    return [one for one in messages() if one[1] != "…"]


TABLES = PAGE.partition("## What each log line asks of an operator")[2].partition("\n## ")[0]
ROWS = [row.split("|")[1] for row in TABLES.splitlines() if row.startswith("| `")]
LINES = tuple(text.rstrip(" …") for cell in ROWS for text in re.findall(r"`([^`]+)`", cell))


def test_each_has_a_row() -> None:
    """A row of the tables begins as each logged line does.

    Where this fails, explain the line in docs/observability.md, "What each log line asks of an
    operator".
    """
    assert len(found()) > 30
    assert [one for one in found() if not one[1].startswith(LINES)] == []


@pytest.mark.parametrize("line", LINES)
def test_is_logged(line: str) -> None:
    """Every row stands for a line that is still logged."""
    is_logged = any(text.startswith(line) for _, text in found())
    assert is_logged or line.startswith(MADE_ELSEWHERE)
