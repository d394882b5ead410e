"""Several workers on one port: started, watched, restarted and ended together.

The kernel spreads connections over the workers (SO_REUSEPORT).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace

from policyd.addresses import reserve
from policyd.child import Child
from policyd.configuration import Address
from policyd.preparation import back_office, keep_back_office, preparing
from policyd.settings import ServerSettings

Ready = Callable[[Address, Address, Address | None], Awaitable[None]]
"""Tells where gRPC, administration and HTTP listen, once every worker decides."""


async def supervise(settings: ServerSettings, stopping: asyncio.Event, ready: Ready) -> None:
    """Run the workers until `stopping` is set. Raises SettingsError or StoreUnavailable."""
    has_room = await preparing(settings)
    with ExitStack() as held:
        grpc = reserve(settings.grpc, "--grpc", held)
        admin = reserve(settings.admin, "--admin", held)
        http = reserve(settings.http, "--http", held) if settings.http else None
        settings = replace(settings, grpc=grpc, admin=admin, http=http)
        numbers = range(1, settings.workers + 1)
        workers = [Child(f"worker {n}", "policyd.worker", settings) for n in numbers]
        office = back_office(settings)
        watching: list[asyncio.Task[None]] = []

        async def say_ready() -> None:
            await asyncio.gather(*(worker.until_ready() for worker in workers))
            await ready(grpc, admin, http)

        try:
            await asyncio.gather(*(worker.start() for worker in workers))
            watching += [asyncio.create_task(worker.keep_running()) for worker in workers]
            # After them, as no decision waits for it.
            if has_room:
                await office.start()
            watching.append(asyncio.create_task(keep_back_office(office, settings, has_room)))
            watching.append(asyncio.create_task(say_ready()))
            await stopping.wait()
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await asyncio.gather(*(worker.stop() for worker in workers))
            # Last, so that it ships what they have written.
            await office.stop()
