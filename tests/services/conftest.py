"""A server that the tests of the services share, each with keys of its own.

Tests that use it run in the loop of the session: `pytestmark = IN_SESSION`.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.running import Running, serving

IN_SESSION = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with serving(tmp_path_factory.mktemp("running")) as stubs:
        yield stubs
