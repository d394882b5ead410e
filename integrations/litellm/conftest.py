"""What the tests of the LiteLLM hook need, and the count of vectors by what became of them."""

from collections import Counter

import pytest

from tests.conftest import policyd as policyd


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many vectors LiteLLM treats in which way."""
    properties = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "vector" and "litellm" in report.nodeid
    ]
    for outcome, count in sorted(Counter(properties).items()):
        terminalreporter.write_line(f"litellm: {count} of {len(properties)} vectors {outcome}")
