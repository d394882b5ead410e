"""What tests need that pip cannot bring: without it they are skipped, and say what is missing.

Where POLICYD_TEST_REQUIRE_ALL is 1, as it is for CI, they fail.
"""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def program(name: str, package: str) -> str:
    """The path of the program `name`, which Debian's `package` brings."""
    return shutil.which(name) or missing(f"{name} is missing (Debian: apt-get install {package})")


def file(path: Path, mend: str) -> Path:
    """The file or folder at `path`; without it, `mend` is told."""
    return path if path.exists() else missing(f"{path} is missing: {mend}")


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where everything is required."""
    if os.environ.get("POLICYD_TEST_REQUIRE_ALL") == "1":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
