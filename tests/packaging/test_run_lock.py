"""The lock of `make run`: what the demo needs, in the versions that are tested, and no more."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
_PINNED = re.compile(r"^([a-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def pinned(name: str) -> dict[str, str]:
    """The version of each package that a lock has."""
    return {canonicalize_name(one): at for one, at in _PINNED.findall((ROOT / name).read_text())}


def names(requirements: list[object]) -> set[str]:
    """The packages that a list in pyproject.toml names."""
    return {
        canonicalize_name(Requirement(one).name) for one in requirements if isinstance(one, str)
    }


def test_the_same_versions() -> None:
    """`make run` installs a part of what the tests run with, in the same versions, so one .venv
    holds both."""
    run = pinned("requirements-run.txt")
    assert len(run) > 30
    assert run.items() <= pinned("requirements.txt").items()


def test_what_the_demo_needs() -> None:
    """The lock has all that policyd[server,gateway] needs, and none of the developers' own
    tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    needed = names(project["project"]["dependencies"]) | names(extras["server"] + extras["gateway"])
    tools = names(project["dependency-groups"]["dev"])
    run = pinned("requirements-run.txt").keys()
    assert needed | names(project["dependency-groups"]["build"]) <= run
    # The tests read what wheels require by the library that builds them.
    assert tools & run <= {"packaging"}
