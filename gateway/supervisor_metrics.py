"""The page of metrics of a gateway. Only a gateway with --metrics loads it."""

from contextlib import ExitStack

from gateway.settings import Settings
from policyd.asgi.crew_metrics import CrewMetrics
from policyd.asgi.tls import tls_context
from policyd.command.address import Address
from policyd.command.crew import Crew
from policyd.telemetry import catalogue


class SupervisorMetrics(CrewMetrics):
    """See CrewMetrics."""

    def __init__(self, address: Address, held: ExitStack) -> None:
        super().__init__(address, held, catalogue.GATEWAY_WORKERS, catalogue.GATEWAY_BUILD)

    async def start(self, workers: Crew, settings: Settings) -> None:
        """Serve them. Raises SettingsError."""
        await self.serve(workers, tls_context(settings.tls_cert, settings.tls_key))

    def renew(self, settings: Settings) -> None:
        """Use the certificate that `settings` name from now on. Raises SettingsError."""
        self.show(settings.tls_cert, settings.tls_key)
