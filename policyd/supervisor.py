"""Several workers on one port: started, watched, restarted and ended together.

The kernel spreads connections over the workers (SO_REUSEPORT). Each is a new process that reads its
settings from its standard input, so they show in no process list, and ends when that closes: not
even a killed supervisor leaves workers behind.
"""

import asyncio
import json
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from policyd.configuration import Address
from policyd.errors import PolicydError, SettingsError
from policyd.server import check_free, prepare
from policyd.settings import ServerSettings, dump_settings

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds before a worker that ended is started again."""
_START = 60.0
"""Seconds that a worker has to start."""
_SILENCE = 10.0
"""Seconds without a sign of life, of which one comes a second, until a worker is killed."""


async def supervise(
    settings: ServerSettings, stopping: asyncio.Event, ready: Callable[[Address, Address], None]
) -> None:
    """Run the workers until `stopping` is set. Raises SettingsError or StoreUnavailable."""
    await asyncio.to_thread(prepare, settings)
    with ExitStack() as held:
        grpc = _reserve(settings.grpc, "--grpc", held)
        admin = _reserve(settings.admin, "--admin", held)
        settings = replace(settings, grpc=grpc, admin=admin)
        workers = [_Worker(number, settings) for number in range(1, settings.workers + 1)]
        try:
            await asyncio.gather(*(worker.start() for worker in workers))
            ready(grpc, admin)
            watching = [asyncio.create_task(worker.keep_running()) for worker in workers]
            await stopping.wait()
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))


def _reserve(address: Address, flag: str, held: ExitStack) -> Address:
    """Take the port for the workers, so that no stranger shares it."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    check_free(address, flag)
    shared = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((address.host, address.port))
    return Address(address.host, shared.getsockname()[1])


def _log_level() -> str:
    return logging.getLevelName(logging.getLogger().level).lower()


class _Worker:
    def __init__(self, number: int, settings: ServerSettings) -> None:
        self._number = number
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "policyd.worker", _log_level()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dump_settings(self._settings)).encode() + b"\n")
        try:
            async with asyncio.timeout(_START):
                answer = (await self._process.stdout.readline()).decode().strip()
        except TimeoutError:
            self._process.kill()
            answer = f"worker {self._number} was not ready after {_START:.0f} s"
        if answer != "ready":
            raise SettingsError(answer or f"worker {self._number} ended while it was starting")

    async def keep_running(self) -> None:
        while True:
            status = await self._end()
            _log.error("worker %d ended (status %d) and is started again", self._number, status)
            await asyncio.sleep(_PAUSE)
            try:
                await self.start()
            except (PolicydError, OSError) as error:
                _log.error("worker %d does not start: %s", self._number, error)

    async def _end(self) -> int:
        """Wait for the worker's end, and bring it about where it hangs. Returns its status."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            while True:
                async with asyncio.timeout(_SILENCE):
                    if not await self._process.stdout.readline():
                        break
        except TimeoutError:
            _log.error("worker %d hangs and is killed", self._number)
            self._process.kill()
        return await self._process.wait()

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(self._settings.grace + 5):
                await process.wait()
        except TimeoutError:
            _log.error("worker %d does not stop and is killed", self._number)
            process.kill()
            await process.wait()
