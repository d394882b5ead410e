"""What the tests of the HTTP check share."""

import pytest

from tests.support.processes import Policyd


@pytest.fixture(scope="session")
def url(policyd: Policyd) -> str:
    """Where policyd answers HTTP."""
    return f"http://{policyd.http}"
