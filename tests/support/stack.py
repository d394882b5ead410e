"""The upstream and the gateway, beside policyd, as tests of the whole need them."""

import asyncio
import re
import socket
import threading
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import uvicorn

from policyd.demo.received import Received
from policyd.demo.upstream import DemoUpstream
from tests.support.processes import Program

_Result = TypeVar("_Result")
_REQUEST_LINE = re.compile(rb"[A-Z]+ /\S* HTTP/1\.1\r\n")


class Background(AbstractContextManager["Background"]):
    """An event loop in a thread, for code that must run while a test blocks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run `work` there and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.run(_cancel_the_rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


class Upstream:
    """A demo upstream on a free port, which keeps the requests that it gets.

    It speaks TLS if it is given the file of a certificate and its key.
    """

    def __init__(self, background: Background, certificate: Path | None = None) -> None:
        self._background = background
        self._app = DemoUpstream(record=100_000)
        config = uvicorn.Config(
            self._app, log_level="critical", lifespan="off", ws="none", ssl_certfile=certificate
        )
        self._server = uvicorn.Server(config)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._background.run(self._start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._background.run(self._stop())

    @property
    def received(self) -> list[Received]:
        """The requests that arrived, oldest first."""
        return list(self._app.record)

    def forget(self) -> None:
        """Begin a new record."""
        self._app.record.clear()

    def hold(self) -> None:
        """Send no chunk of a stream but the first until let_go()."""
        self._background.run(self._set_gate(asyncio.Semaphore(0)))

    def let_go(self) -> None:
        """Send the chunks that hold() has kept back."""
        self._background.run(self._set_gate(None))

    async def _start(self) -> None:
        self._running = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def _stop(self) -> None:
        self._server.should_exit = True
        await self._set_gate(None)
        await self._running

    async def _set_gate(self, gate: asyncio.Semaphore | None) -> None:
        before, self._app.gate = self._app.gate, gate
        if before is not None:
            for _ in range(1000):
                before.release()


class Gateway(Program):
    """`policyd-gateway serve`, on a free port unless `flags` say otherwise."""

    def __init__(
        self,
        policyd: str,
        upstream: str,
        *flags: str,
        env: Mapping[str, str] | None = None,
        files: int | None = None,
    ) -> None:
        super().__init__(
            *("policyd-gateway", "serve", "--listen", "127.0.0.1:0"),
            # The tests of draining set it.
            *("--policyd", policyd, "--upstream", upstream, "--drain", "0", *flags),
            ready=r"policyd-gateway is ready: (\S+)",
            env=env,
            files=files,
        )
        self.url = self.match[1]


class Wire:
    """Stands before the server at `target`, passes every byte on, and counts the requests."""

    def __init__(self, background: Background, target: str) -> None:
        self._background = background
        self._target = urlsplit(target)
        self._sent: list[bytearray] = []

    def __enter__(self) -> Self:
        self._server = self._background.run(self._listen())
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._background.run(self._close())

    @property
    def requests(self) -> int:
        """How many have been sent so far."""
        return sum(len(_REQUEST_LINE.findall(sent)) for sent in self._sent)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = bytearray()
        self._sent.append(sent)
        far = await asyncio.open_connection(self._target.hostname, self._target.port)
        await asyncio.gather(_pass_on(reader, far[1], sent), _pass_on(far[0], writer, bytearray()))


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray
) -> None:
    try:
        while chunk := await reader.read(65536):
            seen += chunk
            writer.write(chunk)
    except ConnectionError:
        pass
    writer.close()
