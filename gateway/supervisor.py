"""The gateway's supervisor and its workers.

The supervisor holds the listening socket, and the workers take connections from it in turn. So a
connection that waits there is not lost when a worker ends: another worker takes it.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.config_checks import files
from gateway.first_contact import tell_of_policyd
from gateway.policyd_client import spool_of
from gateway.server import Server, listen_for_workers
from gateway.settings import Settings, dump_settings
from policyd.command.child import Child, End
from policyd.command.config_checks import look_at
from policyd.command.crew import Crew, Orders, Own, Worker, keep_fixed
from policyd.command.process import settle

if TYPE_CHECKING:
    from gateway.supervisor_metrics import SupervisorMetrics

Ready = Callable[[str], None]
"""Called with the URL at which the gateway listens, once it does, and where its metrics are."""
ReadAgain = Callable[[], Settings]
"""Reads the settings again. Raises SettingsError."""

_FIXED = ("listen", "workers", "metrics", "decide", "spool")
"""Settings that take effect only at the next start."""


async def supervise(
    settings: Settings, orders: Orders, ready: Ready, read_again: ReadAgain
) -> None:
    """Run the workers until `orders` say to stop. Raises SettingsError or CannotListen."""
    with ExitStack() as held:
        if settings.is_local:
            held.enter_context(_own_spool(settings))
        supervisor = _Supervisor(settings, read_again, held)
        orders.hurry = supervisor.workers.hurry
        end = End.NOW
        try:
            await supervisor.start()
            settle()  # The only worker may be in this process.
            ready(supervisor.at)
            asking = asyncio.create_task(tell_of_policyd(settings))
            try:
                await orders.follow(supervisor.replace)
            finally:
                asking.cancel()
            end = orders.end
        finally:
            await supervisor.stop(end)


class _Supervisor:
    """Holds the gateway's socket and its workers."""

    def __init__(self, asked: Settings, read_again: ReadAgain, held: ExitStack) -> None:
        self._asked = asked
        self._read_again = read_again
        self._metrics = _metrics(asked, held)
        address, self._listening = listen_for_workers(asked.listen, held)
        metrics = self._metrics.address if self._metrics else None
        self._settings = replace(asked, listen=address, metrics=metrics)
        self.url = f"{'https' if asked.tls_cert else 'http'}://{address}"
        self.workers = Crew(self._first_workers())

    def _first_workers(self) -> list[Worker]:
        if self._settings.workers > 1:
            return [self._worker() for _ in range(self._settings.workers)]
        # A single worker first runs in the supervisor's own process, which starts sooner.
        return [Own(Server(self._settings, listening=self._listening.dup()))]

    @property
    def at(self) -> str:
        """Where the gateway listens and serves its metrics, in words."""
        metrics = self._settings.metrics
        return f"{self.url} metrics={metrics}" if metrics else self.url

    async def start(self) -> None:
        """Start the workers, and from then on restart those that end."""
        if self._metrics is not None:
            await self._metrics.start(self.workers, self._settings)
        await self.workers.start()
        self.workers.watch()

    def _worker(self) -> Child:
        settings = self._settings
        return Child(
            "a worker",
            "gateway.worker",
            dump_settings(settings),
            settings.ending,
            {"listen": self._listening},
        )

    async def replace(self) -> None:
        """Replace the workers by new ones, which use the settings and files as they are now.

        Raises PolicydError or OSError.
        """
        before = self._settings
        again = self._read_again()
        look_at(files(again))
        self._settings = keep_fixed(again, self._asked, before, _FIXED)
        try:
            await self.workers.replace(lambda _: self._worker())
        except BaseException:
            self._settings = before
            raise
        if self._metrics is not None:
            self._metrics.renew(self._settings)

    async def stop(self, end: End) -> None:
        """Stop the workers."""
        self._listening.close()  # Each worker has its own copy of the socket.
        await self.workers.stop(end)
        if self._metrics is not None:
            await self._metrics.stop()


def _own_spool(settings: Settings) -> AbstractContextManager[None]:
    """Holds the spool of a gateway that decides by itself. Raises SettingsError."""
    # Imported late, so that a gateway that asks policyd starts sooner.
    from policyd.client.local import hold

    return hold(spool_of(settings))


def _metrics(settings: Settings, held: ExitStack) -> "SupervisorMetrics | None":
    if settings.metrics is None:
        return None
    # Imported late, so that a gateway without --metrics starts sooner.
    from gateway.supervisor_metrics import SupervisorMetrics

    return SupervisorMetrics(settings.metrics, held)
