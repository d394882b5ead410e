"""The wheel: built, installed in an environment without our folder, and used from there."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONSUMER = Path(__file__).with_name("consumer.py")
IMPORTS_ALL = """
import importlib, pkgutil, sys
for name in ("policyd.client", "policyd.descriptor", "policyd.engine", "policyd.v1"):
    for found in pkgutil.iter_modules(importlib.import_module(name).__path__, name + "."):
        importlib.import_module(found.name)
print(sys.modules["policyd.client"].__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of `command`, which must succeed."""
    done = attempt(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attempt(*command: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the build tool that the lock holds."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and its dependencies without an extra.

    The dependencies are linked from the environment of the tests, file by file, so that no network
    is needed and nothing else is installed, but for the types of gRPC and of protobuf messages. A
    consumer that checks types installs those: the packages carry none themselves.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    installed = folder / "bin/python"
    install = ("-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", installed)
    run(sys.executable, *install, wheel, cwd=folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    policyd = metadata.Distribution.at(next(packages.glob("policyd-*.dist-info")))
    types = [metadata.distribution(name) for name in ("types-grpcio", "types-protobuf")]
    for distribution in [*required(policyd), *types]:
        for file in distribution.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                link = packages / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(file.locate())))
    return installed


def required(distribution: metadata.Distribution) -> Iterator[metadata.Distribution]:
    """The dependencies of `distribution` without an extra, and their own dependencies."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            dependency = metadata.distribution(requirement.name)
            yield dependency
            yield from required(dependency)


def test_every_file_is_in_it(wheel: Path) -> None:
    """The wheel contains templates, static files, migrations, type marks and all other files."""
    files = {
        str(path.relative_to(ROOT))
        for package in ("policyd", "gateway")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    contents = set(ZipFile(wheel).namelist())
    assert files <= contents
    assert {name for name in contents if ".dist-info/" not in name} <= files
    for folder, ending in [
        ("policyd/console/templates", ".html"),
        ("policyd/console/static", ".css"),
        ("policyd/store/migrations/versions", ".py"),
        ("policyd/store/migrations", ".mako"),
        ("policyd", "py.typed"),
        ("gateway", "py.typed"),
    ]:
        assert any(name.startswith(folder + "/") and name.endswith(ending) for name in contents)


def test_the_client_needs_its_own_dependencies_only(python: Path, tmp_path: Path) -> None:
    """Every import of a gateway loads in that environment, from there, and without a server."""
    assert run(python, "-I", "-c", IMPORTS_ALL, cwd=tmp_path).startswith(str(python.parents[1]))
    assert attempt(python, "-I", "-c", "import sqlalchemy", cwd=tmp_path).returncode != 0


def test_a_consumer_runs(python: Path, tmp_path: Path) -> None:
    """Both clients work from the wheel, as far as they can without a policyd."""
    run(python, "-I", CONSUMER, cwd=tmp_path)


def test_a_consumer_has_types(python: Path, tmp_path: Path) -> None:
    """A consumer's correct calls pass mypy's strict mode, and mypy finds each mistake in it."""
    consumer = shutil.copy(CONSUMER, tmp_path)  # Not beside our own sources.
    options = ("--strict", "--python-executable", python)
    run(sys.executable, "-m", "mypy", *options, consumer, cwd=tmp_path)
