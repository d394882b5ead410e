"""The page of metrics of a policyd, with those that no worker could tell of itself.

Only a policyd with --metrics loads it.
"""

import ssl
from contextlib import ExitStack

from policyd.asgi.metrics import MetricsServer
from policyd.asgi.tls import tls_context
from policyd.build_info import commit, version
from policyd.command.address import Address
from policyd.command.crew import Crew
from policyd.settings import ServerSettings
from policyd.telemetry import catalogue
from policyd.telemetry.reading import Reading


class SupervisorMetrics:
    """Serves the metrics of a supervisor and its processes at `address`.

    It takes the port as it is made, and makes the folder that the processes share, so make it
    first. Raises CannotListen or SettingsError.
    """

    def __init__(self, address: Address, held: ExitStack) -> None:
        self._server = MetricsServer(address, held)
        self.address = self._server.address
        self._build = version(), commit()
        self._workers: Crew
        self._tls: ssl.SSLContext | None = None
        self._settings: ServerSettings

    async def start(self, workers: Crew, settings: ServerSettings) -> None:
        """Serve them. Raises SettingsError."""
        self._workers, self._settings = workers, settings
        self._tls = tls_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        await self._server.start(self._read, self._not_ready, self._tls)

    def renew(self, settings: ServerSettings) -> None:
        """Show the certificate that the files of `settings` hold now."""
        if self._tls is not None and settings.tls_cert is not None:
            self._tls.load_cert_chain(settings.tls_cert, settings.tls_key)

    async def stop(self) -> None:
        """Serve them no longer."""
        await self._server.stop()

    def _read(self) -> Reading:
        yield catalogue.WORKERS, (), self._workers.ready
        yield catalogue.SPOOL_LIMIT, (), self._settings.spool_limit
        yield catalogue.BUILD, self._build, 1

    async def _not_ready(self) -> str:
        return "" if self._workers.ready else "no worker is ready"
