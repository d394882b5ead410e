"""A gateway before a demo upstream, in the tests' own event loop, asking a real policyd.

Tests that use them run in the loop of the session: `pytestmark = IN_SESSION`.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest
import pytest_asyncio

from gateway.server import Server
from gateway.settings import Settings
from policyd.command.address import Address
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest, EvaluateResponse
from tests.support.processes import Policyd
from tests.support.raw_http import Demo, serving_demo

IN_SESSION = pytest.mark.asyncio(loop_scope="session")
FREE = Address("127.0.0.1", 0)


class Serving(Protocol):
    """Makes a gateway with these settings."""

    def __call__(
        self, upstream: str, **settings: object
    ) -> AbstractAsyncContextManager[Server]: ...


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo() -> AsyncIterator[Demo]:
    """The demo upstream that the tests share."""
    async with serving_demo() as running:
        yield running


@pytest.fixture
def upstream(demo: Demo) -> Demo:
    """The demo upstream, with an empty record."""
    demo.app.record.clear()
    return demo


@pytest.fixture(scope="session")
def serving(policyd: Policyd) -> Serving:
    """Gateways with other settings, asking the real policyd."""

    def serve(upstream: str, **settings: object) -> Server:
        given = {"listen": FREE, "policyd": policyd.grpc, "policy_timeout": 30.0, **settings}
        return Server(Settings(upstream=upstream, **given))  # type: ignore[arg-type]  # any of them

    return serve


@pytest.fixture(scope="session")
def open_door() -> Serving:
    """Gateways that do not ask policyd and allow everything, for tests that concern no policy."""

    async def allow(_: EvaluateRequest) -> EvaluateResponse:
        return EvaluateResponse(decision=DECISION_ALLOW)

    def serve(upstream: str, **settings: object) -> Server:
        given = Settings(upstream=upstream, listen=FREE, **settings)  # type: ignore[arg-type]  # any
        return Server(given, allow)

    return serve


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(serving: Serving, demo: Demo) -> AsyncIterator[str]:
    """The URL of a gateway before the demo upstream."""
    async with serving(demo.url) as server:
        yield server.url
