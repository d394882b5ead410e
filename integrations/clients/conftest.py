"""What the tests of the example gateways need, and the count of vectors that each passes."""

import re
from collections import Counter

import pytest

from tests.conftest import policyd as policyd
from tests.conftest import unused_port as unused_port

_VECTOR = re.compile(r"test_vectors\[(\w+)-")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many vectors each gateway passes."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if match := _VECTOR.search(report.nodeid):
                counts.setdefault(match[1], Counter())[outcome] += 1
    for name, count in counts.items():
        total = count.total()
        terminalreporter.write_line(f"{name} passes {count['passed']} of {total} vectors")
