"""Each package begins with an index of its folder, which a newcomer reads first."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "policyd" / "v1"
PACKAGES = sorted(
    file.parent
    for folder in ("policyd", "gateway")
    for file in (ROOT / folder).rglob("__init__.py")
    if file.parent != GENERATED
)
# A line of an index: one name or several, and behind two spaces what they are.
ENTRY = re.compile(r"^ *(\w+/?(?:, \w+/?)*)(?: {2,}|$)", re.MULTILINE)
STORE = ROOT / "policyd" / "store"
# `policyd.policies` finds its modules by itself, and so does Alembic.
FOUND = {ROOT / "policyd" / "policies", STORE / "migrations", STORE / "migrations" / "versions"}
# Their docstrings list files and tables, too.
LISTS_MORE = {STORE / "migrations", ROOT / "policyd" / "decision_log" / "spool"}


def names(package: Path) -> set[str]:
    """What an index has to name: the modules and packages of the folder."""
    modules = {file.stem for file in package.glob("*.py")} - {"__init__"}
    return modules | {file.parent.name for file in package.glob("*/__init__.py")}


def index(package: Path) -> str:
    """The docstring of a package."""
    return ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""


@pytest.mark.parametrize("package", PACKAGES, ids=lambda one: str(one.relative_to(ROOT)))
def test_it_names_every_module(package: Path) -> None:
    """An index has every module of its folder, so that none is found by chance alone."""
    wanted = set() if package in FOUND else names(package)
    assert not wanted - set(re.findall(r"\w+", index(package)))


@pytest.mark.parametrize(
    "package", sorted(set(PACKAGES) - LISTS_MORE), ids=lambda one: str(one.relative_to(ROOT))
)
def test_it_names_nothing_else(package: Path) -> None:
    """What an index names at the beginning of a line, before its description, is there."""
    named = {name.strip(" /") for text in ENTRY.findall(index(package)) for name in text.split(",")}
    there = {path.name.removesuffix(".py") for path in package.iterdir()}
    assert not named - there
