"""A plugin of pytest for `make mutants`: each test begins with empty caches.

mutmut runs every mutant in a fork of a process in which all tests ran once. What a cache of ours
holds from then would answer in place of the mutant, which then seems to survive.
"""

import sys

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("policyd", "gateway"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
