"""Environments that hold the wheel and what it requires, and nothing else.

What it requires is linked from the environment of the tests, file by file, so that no network is
needed.
"""

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.processes import environment


def run(*command: str | Path, cwd: Path) -> str:
    """The output of `command`, which must succeed."""
    done = attempt(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attempt(*command: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def install(
    wheel: Path, folder: Path, extras: Iterable[str] = (), more: Iterable[str] = ()
) -> Path:
    """The folder of programs of a new environment in `folder`, which holds the wheel with `extras`
    and the distributions `more`."""
    venv.create(folder, with_pip=False, symlinks=True)
    programs = folder / "bin"
    into = ("--offline", "--no-deps", "--python", programs / "python")
    run(sys.executable, "-m", "uv", "pip", "install", *into, wheel, cwd=folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    policyd = metadata.Distribution.at(next(packages.glob("policyd-*.dist-info")))
    wanted = {one.name: one for one in _required(policyd, extras)}
    for distribution in [*wanted.values(), *map(metadata.distribution, more)]:
        _link(distribution, packages)
    return programs


def _link(distribution: metadata.Distribution, packages: Path) -> None:
    for file in distribution.files or []:
        if ".." not in file.parts and file.suffix != ".pyc":
            link = packages / file
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():  # xds-protos brings files of googleapis-common-protos, too.
                link.symlink_to(Path(str(file.locate())))


def _required(
    distribution: metadata.Distribution, extras: Iterable[str]
) -> Iterator[metadata.Distribution]:
    """What `distribution` with `extras` requires, and what that requires."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": one}) for one in ("", *extras)):
            dependency = metadata.distribution(requirement.name)
            yield dependency
            yield from _required(dependency, requirement.extras)
