"""Fixtures for the tests of the LiteLLM hook, and the count of vectors by their outcome."""

from collections import Counter
from collections.abc import Iterator

import pytest

from integrations.litellm.proxy import FOLDER, LiteLLM
from tests.conftest import policyd as policyd
from tests.support.conformance import Keys
from tests.support.ports import unused_port
from tests.support.processes import Policyd
from tests.support.stack import Background, Upstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """A demo upstream."""
    with Background() as background, Upstream(background) as running:
        yield running


@pytest.fixture(scope="session")
def keys(policyd: Policyd) -> Keys:
    return Keys(policyd)


@pytest.fixture(scope="session")
def proxy(policyd: Policyd, upstream: Upstream) -> Iterator[LiteLLM]:
    """LiteLLM with the hook, configured by config.yaml."""
    env = {"POLICYD_TARGET": policyd.grpc, "POLICYD_TIMEOUT": "30"}
    server = LiteLLM(FOLDER / "config.yaml", unused_port(), upstream.url, env)
    yield server
    server.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how many vectors had each outcome."""
    properties = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "vector" and "litellm" in report.nodeid
    ]
    for outcome, count in sorted(Counter(properties).items()):
        terminalreporter.write_line(f"litellm: {count} of {len(properties)} vectors {outcome}")
