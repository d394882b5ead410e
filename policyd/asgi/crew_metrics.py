"""The page of metrics of a supervisor and its workers, with those that only the supervisor knows.
policyd and its gateway each name these metrics and may add others."""

import ssl
from contextlib import ExitStack
from pathlib import Path

from policyd.asgi.metrics import MetricsServer
from policyd.build_info import commit, version
from policyd.command.address import Address
from policyd.command.crew import Crew
from policyd.command.tls_files import load_pair
from policyd.telemetry.catalogue import Metric
from policyd.telemetry.reading import Reading


class CrewMetrics:
    """Serves the metrics of a supervisor and its processes at `address`. `ready` is the gauge of
    how many workers are ready, `build` that of the version and commit.

    Making it takes the port and makes the folder that the processes share, so make it before they
    start. Raises CannotListen or SettingsError.
    """

    def __init__(self, address: Address, held: ExitStack, ready: Metric, build: Metric) -> None:
        self._server = MetricsServer(address, held)
        self.address = self._server.address
        self._ready, self._build = ready, build
        self._built = version(), commit()
        self._workers: Crew
        self._tls: ssl.SSLContext | None = None

    async def serve(self, workers: Crew, tls: ssl.SSLContext | None) -> None:
        """Serve the metrics until stop()."""
        self._workers, self._tls = workers, tls
        await self._server.start(self.read, self._not_ready, tls)

    def show(self, certificate: Path | None, key: Path | None) -> None:
        """From now on, present the certificate that these files hold, if it speaks TLS. Raises
        SettingsError."""
        if self._tls is not None and certificate is not None and key is not None:
            load_pair(self._tls, certificate, key)

    async def stop(self) -> None:
        """Stop serving."""
        await self._server.stop()

    def read(self) -> Reading:
        """The gauges that only the supervisor knows."""
        yield self._ready, (), self._workers.ready
        yield self._build, self._built, 1

    async def _not_ready(self) -> str:
        return "" if self._workers.ready else "no worker is ready"
