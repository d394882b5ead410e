"""The metrics that a supervisor reports about itself."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from policyd.command.address import Address
from policyd.command.crew import Crew
from policyd.server.supervisor_metrics import SupervisorMetrics
from policyd.settings import ServerSettings
from policyd.telemetry import catalogue


async def test_settings_that_were_read_again(tmp_path: Path) -> None:
    """The limit of the spool is the one that holds since the last SIGHUP."""
    settings = ServerSettings(database_url=f"sqlite:///{tmp_path}/policyd.db")
    with ExitStack() as held:
        metrics = SupervisorMetrics(Address("127.0.0.1", 0), held)
        await metrics.start(Crew([]), settings)
        metrics.renew(replace(settings, spool_limit=2**20))
        found = {metric: value for metric, _, value in metrics.read()}
        await metrics.stop()
    assert found[catalogue.SPOOL_LIMIT] == 2**20
    assert found[catalogue.WORKERS] == 0
