"""The page of metrics of a policyd. Only a policyd with --metrics loads it."""

from contextlib import ExitStack

from policyd.asgi.crew_metrics import CrewMetrics
from policyd.asgi.tls import tls_context
from policyd.command.address import Address
from policyd.command.crew import Crew
from policyd.settings import ServerSettings
from policyd.telemetry import catalogue
from policyd.telemetry.reading import Reading


class SupervisorMetrics(CrewMetrics):
    """See CrewMetrics."""

    def __init__(self, address: Address, held: ExitStack) -> None:
        super().__init__(address, held, catalogue.WORKERS, catalogue.BUILD)
        self._settings: ServerSettings

    async def start(self, workers: Crew, settings: ServerSettings) -> None:
        """Serve them. Raises SettingsError."""
        self._settings = settings
        tls = tls_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        await self.serve(workers, tls)

    def renew(self, settings: ServerSettings) -> None:
        """Use `settings`, and the files that they name, from now on. Raises SettingsError."""
        self._settings = settings
        self.show(settings.tls_cert, settings.tls_key)

    def read(self) -> Reading:
        """See CrewMetrics."""
        yield from super().read()
        yield catalogue.SPOOL_LIMIT, (), self._settings.spool_limit
