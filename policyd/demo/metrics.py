"""The demo's page of metrics: those of policyd and the gateway, as both run in one process."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from policyd.asgi.metrics import MetricsServer
from policyd.build_info import commit, version
from policyd.command.address import Address
from policyd.telemetry import catalogue
from policyd.telemetry.reading import Reading


@asynccontextmanager
async def serving_metrics(address: Address) -> AsyncIterator[Address]:
    """Serve the metrics at `address` while the block runs, which starts the servers. Yields the
    address with the port that was taken. Raises CannotListen or SettingsError."""
    build = version(), commit()

    def read() -> Reading:
        for workers in (catalogue.WORKERS, catalogue.GATEWAY_WORKERS):
            yield workers, (), 1
        for builds in (catalogue.BUILD, catalogue.GATEWAY_BUILD):
            yield builds, build, 1

    with ExitStack() as held:
        server = MetricsServer(address, held)
        await server.start(read, _ready, None)
        try:
            yield server.address
        finally:
            await server.stop()


async def _ready() -> str:
    return ""
