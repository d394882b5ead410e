"""The packages that our code imports: each is declared, and in the import contracts."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from typing import Any

import pytest

from tests.packaging.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = ("policyd", "gateway")
# Of later versions of Python, or for the type checker only.
STANDARD = {*sys.stdlib_module_names, "compression", "_typeshed"}
ALLOWED = {
    "What is decided needs the standard library only": set(),
    "A policy needs the engine, and patterns that match in linear time": {"re2"},
}
"""By the name of a contract, the packages that its modules may import."""


def imported(tree: ast.AST) -> set[str]:
    """The packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.partition(".")[0] for name in found}


IMPORTED = {
    name
    for package in OURS
    for file in (ROOT / package).rglob("*.py")
    for name in imported(ast.parse(file.read_text()))
} - STANDARD.union(OURS)


def contract(name: str) -> Any:
    """The contract of that name in pyproject.toml."""
    [found] = (one for one in PROJECT["tool"]["importlinter"]["contracts"] if one["name"] == name)
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_a_contract_knows_every_package(name: str) -> None:
    """What is decided may import none of the packages that anything of ours imports, and the list
    of them has no others.
    """
    others = {
        one for one in contract(name)["forbidden_modules"] if one.partition(".")[0] not in OURS
    }
    assert others == IMPORTED - ALLOWED[name]


@pytest.mark.parametrize("name", ALLOWED)
def test_a_contract_knows_every_package_below(name: str) -> None:
    """Nor may it import our packages that stand below it, or beside it."""
    found = contract(name)
    [layers] = (
        one["layers"]
        for one in PROJECT["tool"]["importlinter"]["contracts"]
        if one["type"] == "layers"
    )
    rows = [layer.split(" | ") for layer in layers]
    own = found["source_modules"]
    first = next(at for at, row in enumerate(rows) if set(row) & set(own))
    below = {one for row in rows[first:] for one in row} - {*own, "policyd.engine"}
    assert {one for one in found["forbidden_modules"] if one.startswith("policyd")} == below


def test_what_is_imported_is_declared() -> None:
    """Each package that our code imports is of a distribution that pyproject.toml names, so that no
    other one has to bring it along.
    """
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    texts = [*project["dependencies"], *(text for extra in extras for text in extra)]
    declared = {normal(re.split(r"[^\w.-]", text)[0]) for text in texts}
    owners = packages_distributions()
    # One that later versions of Python need no more is not installed there.
    found = {name: {*map(normal, owners[name])} for name in IMPORTED & owners.keys()}
    assert {name: names for name, names in found.items() if not names & declared} == {}


def normal(name: str) -> str:
    """A distribution's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
