"""Fixtures for the tests of the example gateways, and the count of vectors that each passes."""

import re
from collections import Counter

import pytest

from tests.conftest import policyd as policyd
from tests.conftest import unused_port as unused_port

_VECTOR = re.compile(r"test_vectors\[(\w+)-")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many vectors each passes."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if match := _VECTOR.search(report.nodeid):
                is_refused = ("refused", True) in report.user_properties
                counts.setdefault(match[1], Counter())["refused" if is_refused else outcome] += 1
    for name, count in counts.items():
        passed = f"{name} passes {count['passed']} of {count.total()} vectors"
        refused = f", and refuses {count['refused']} requests by itself" if count["refused"] else ""
        terminalreporter.write_line(passed + refused)
