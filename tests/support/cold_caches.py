"""A plugin of pytest for `make mutants`: each test begins with empty caches, and keeps its name.

mutmut runs every mutant in a fork of a process in which all tests ran once. What a cache of ours
holds from then would answer in place of the mutant, which then seems to survive.

mutmut collects the tests several times in one process, where pytest escapes the backslashes of a
test's name once more each time. So no name has one.
"""

import sys
from collections.abc import Callable

import pytest

_clear: list[Callable[[], None]] = []
"""What empties each cache of the modules that the tests import."""


@pytest.hookimpl
def pytest_make_parametrize_id(val: object) -> str | None:
    """The name of a text in which pytest would escape something; None leaves the name to pytest."""
    if not isinstance(val, str) or (val.isascii() and val.isprintable() and "\\" not in val):
        return None
    return ascii(val)[1:-1].replace("\\", "%")


@pytest.hookimpl
def pytest_collection_finish() -> None:
    """Find the caches, once for all tests, as a look at every module takes long."""
    ours = [module for name, module in sys.modules.items() if _is_ours(name)]
    found = {id(value): value for module in ours for value in vars(module).values()}
    _clear[:] = [value.cache_clear for value in found.values() if hasattr(value, "cache_clear")]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    for clear in _clear:
        clear()


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("policyd", "gateway")
