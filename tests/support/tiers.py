"""The tiers of the tests: which run in `make test`, and which wait for `make test-all`.

A test is `quick` unless it has another marker. Most markers are set here: by the folder that the
test stands in, by the fixtures that it uses, or by the values that it is run with. A test sets a
marker of its own for whatever else it needs. pyproject.toml declares the markers.
"""

from pathlib import Path

import pytest

FOLDERS = {"demo": "slow", "deploy": "programs", "faults": "faults", "proxies": "proxies"}
"""The marker of each folder of tests/ whose tests are not quick."""
FILES = {
    "test_browser.py": "browser",
    "test_child.py": "slow",
    "test_openai_types.py": "slow",
    "test_probes.py": "slow",
    "test_extras.py": "slow",
    "test_prometheus.py": "programs",
    "test_run.py": "slow",
    "test_tls.py": "slow",
}
"""The marker of each file whose tests are not quick."""
FIXTURES = {
    "postgresql": "postgresql",
    "browser": "browser",
    "old": "programs",
    "policyds": "slow",
    "disk": "programs",
    "start": "slow",
    "measured": "slow",
    "enforcing_policyd": "slow",
}
"""The marker of each fixture that needs what pip does not bring, or that starts servers for each
test that uses it."""
VALUES = {"postgresql": "postgresql"}
"""The marker of each value of a parameter that requests such a fixture."""
MARKERS = {*FOLDERS.values(), *FILES.values(), *FIXTURES.values(), *VALUES.values(), "clients"}

_LONGEST = ("faults", "browser", "proxies", "programs", "clients", "postgresql", "slow")
"""Markers, those first whose files take longest."""

QUICK = "quick"


def is_left_out(path: Path, wanted: str) -> bool:
    """Whether no test at `path` is quick, where the expression `wanted` selects the quick ones.

    What is left out is not even imported.
    """
    return wanted == QUICK and (path.name in FOLDERS or path.name in FILES)


def mark(items: list[pytest.Item]) -> None:
    """Put its markers on each test, and `quick` on those that have none."""
    for item in items:
        for name in _named(item):
            item.add_marker(name)
        if not any(item.get_closest_marker(name) for name in MARKERS):
            item.add_marker(QUICK)


def put_long_ones_first(items: list[pytest.Item]) -> None:
    """Have the files come first whose tests take longest, so that short ones fill the end, where
    one process would otherwise wait for the other."""
    ranks: dict[Path, int] = {}
    for item in items:
        rank = next((n for n, name in enumerate(_LONGEST) if item.get_closest_marker(name)), 9)
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


def _named(item: pytest.Item) -> set[str]:
    folders = [FOLDERS.get(part) for part in item.path.parts]
    fixtures = [FIXTURES.get(name) for name in getattr(item, "fixturenames", ())]
    given = getattr(item, "callspec", None)
    values = (
        [VALUES.get(value) for value in given.params.values() if isinstance(value, str)]
        if given
        else []
    )
    files = [FILES.get(item.path.name)]
    return {name for name in (*folders, *files, *fixtures, *values) if name}
