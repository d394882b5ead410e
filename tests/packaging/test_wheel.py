"""The wheel: built, installed in an environment without our folder, and used from there."""

import shutil
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from policyd.build_info import commit
from tests.packaging.conftest import ROOT, SOURCE
from tests.packaging.environments import attempt, install, run

CONSUMER = Path(__file__).with_name("consumer.py")
COMMIT = "policyd/commit.txt"
IMPORTS_ALL = """
import importlib, pkgutil, sys
for name in ("policyd.client", "policyd.descriptor", "policyd.engine", "policyd.v1"):
    for found in pkgutil.iter_modules(importlib.import_module(name).__path__, name + "."):
        if found.name != "policyd.client.http_leftovers":  # policyd[http] brings what it takes.
            importlib.import_module(found.name)
print(sys.modules["policyd.client"].__file__)
"""


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and its dependencies without an extra.

    It also holds the types of gRPC and of protobuf messages. A consumer that checks types installs
    those: the packages carry none themselves.
    """
    types = ("types-grpcio", "types-protobuf")
    return install(wheel, tmp_path_factory.mktemp("environment"), more=types) / "python"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What the wheel says of itself to a package index."""
    with ZipFile(wheel) as packed:
        [name] = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(packed.read(name).decode())


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
    assert {name for name in contents if ".dist-info/" not in name} <= files | {COMMIT}
    for folder, ending in [
        ("policyd/console/templates", ".html"),
        ("policyd/console/static", ".css"),
        ("policyd/store/migrations/versions", ".py"),
        ("policyd/store/migrations", ".mako"),
        ("policyd", "py.typed"),
        ("gateway", "py.typed"),
    ]:
        assert any(name.startswith(folder + "/") and name.endswith(ending) for name in contents)


def test_it_carries_its_commit(wheel: Path) -> None:
    """The wheel holds the commit that is checked out where it is built."""
    assert commit()
    with ZipFile(wheel) as packed:
        assert packed.read(COMMIT).decode().startswith(commit())


def test_what_a_package_index_shows(metadata: Message) -> None:
    """The description is the README, whose links lead to the repository's files of this version."""
    version = metadata["Version"]
    description = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert description.startswith("# policyd\n")
    assert f"]({SOURCE}/blob/v{version}/docs/operations.md" in description
    assert f"]({SOURCE}/raw/v{version}/docs/images/" in description
    assert not [link for link in description.split("](")[1:] if not link.startswith("https://")]
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert urls["Source"] == SOURCE
    assert urls["Changelog"] == f"{SOURCE}/blob/v{version}/CHANGELOG.md"
    classifiers = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    assert metadata["Keywords"]


@pytest.mark.slow
def test_the_client_needs_its_own_dependencies_only(python: Path, tmp_path: Path) -> None:
    """Every import of a gateway loads in that environment, from there, and without a server."""
    assert run(python, "-I", "-c", IMPORTS_ALL, cwd=tmp_path).startswith(str(python.parents[1]))
    assert attempt(python, "-I", "-c", "import sqlalchemy", cwd=tmp_path).returncode != 0


@pytest.mark.slow
def test_a_consumer_runs(python: Path, tmp_path: Path) -> None:
    """Both clients work from the wheel, as far as they can without a policyd."""
    run(python, "-I", CONSUMER, cwd=tmp_path)


@pytest.mark.slow
def test_a_consumer_has_types(python: Path, tmp_path: Path) -> None:
    """A consumer's correct calls pass mypy's strict mode, and mypy finds each mistake in it."""
    consumer = shutil.copy(CONSUMER, tmp_path)  # Not beside our own sources.
    options = ("--strict", "--python-executable", python)
    run(sys.executable, "-m", "mypy", *options, consumer, cwd=tmp_path)
