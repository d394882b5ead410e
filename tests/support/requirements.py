"""Programs that tests need and pip cannot install: without them the tests are skipped, and report
what is missing.

Where POLICYD_TEST_REQUIRE_ALL is 1, as it is for CI, they fail.
"""

import os
import shutil
import threading
from pathlib import Path
from typing import NoReturn

import pytest

_only_pip = threading.Event()


def only_pip(is_quick: bool) -> None:
    """Whether the test that begins is a quick one, which needs no program from outside pip."""
    if is_quick:
        _only_pip.set()
    else:
        _only_pip.clear()


def beyond_pip(what: str) -> None:
    """Fail a quick test: it may not need `what`, which pip does not install."""
    if _only_pip.is_set():
        pytest.fail(f"a test that needs {what} is not quick: see tests/support/tiers.py")


def program(name: str, package: str) -> str:
    """The path of the program `name`, which Debian's `package` contains."""
    beyond_pip(name)
    return shutil.which(name) or missing(f"{name} is missing (Debian: apt-get install {package})")


def file(path: Path, fix: str) -> Path:
    """The file or folder at `path`; if it is missing, the message names `fix`."""
    beyond_pip(str(path))
    return path if path.exists() else missing(f"{path} is missing: {fix}")


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where everything is required."""
    if os.environ.get("POLICYD_TEST_REQUIRE_ALL") == "1":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
