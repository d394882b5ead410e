"""A gateway with all its workers: they take connections in turn from one socket, which the
supervisor holds, so that none is lost with a worker that ends."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from gateway.server import Server, listen
from gateway.settings import Settings, dump_settings
from policyd.command.child import Child, End
from policyd.command.crew import Crew, Orders, Own, Worker

_log = logging.getLogger("gateway")

Ready = Callable[[str], None]
"""Is told the URL at which the gateway listens."""
ReadAgain = Callable[[], Settings]
"""Reads the settings once more. Raises SettingsError."""

_FIXED = ("listen", "workers")
"""Settings that hold until the gateway is started again."""


async def supervise(
    settings: Settings, orders: Orders, ready: Ready, read_again: ReadAgain
) -> None:
    """Run all of it until it is to stop. Raises SettingsError or CannotListen."""
    with ExitStack() as held:
        supervisor = _Supervisor(settings, read_again, held)
        orders.hurry = supervisor.workers.hurry
        end = End.NOW
        try:
            await supervisor.workers.start()
            supervisor.workers.watch()
            ready(supervisor.url)
            await orders.follow(supervisor.replace)
            end = orders.end
        finally:
            await supervisor.stop(end)


class _Supervisor:
    """Holds the gateway's socket, and the workers."""

    def __init__(self, asked: Settings, read_again: ReadAgain, held: ExitStack) -> None:
        self._asked = asked
        self._read_again = read_again
        address, self._listening = listen(asked.listen, held)
        self._settings = replace(asked, listen=address)
        self.url = f"{'https' if asked.tls_cert else 'http'}://{address}"
        self.workers = Crew(self._first_workers())

    def _first_workers(self) -> list[Worker]:
        if self._settings.workers > 1:
            return [self._worker() for _ in range(self._settings.workers)]
        # The only one needs no process of its own to begin with, which starts sooner.
        return [Own(Server(self._settings, listening=self._listening.dup()))]

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
        """Replace the workers, by what the settings and files are now.

        Raises PolicydError or OSError.
        """
        asked = self._read_again()
        for name in _FIXED:
            if getattr(asked, name) != getattr(self._asked, name):
                _log.warning("--%s has changed, which holds from the next start on", name)
        kept = {name: getattr(self._settings, name) for name in _FIXED}
        self._settings = replace(asked, **kept)
        await self.workers.replace(lambda _: self._worker())

    async def stop(self, end: End) -> None:
        """End all."""
        self._listening.close()  # Those that still answer have their own.
        await self.workers.stop(end)
