"""Load on one address, closed loop: as many requests at once as asked for, one after the other.

It comes from h2load, a compiled client of little CPU, where that is installed (Debian:
nghttp2-client); else from a client in Python, whose figures are then the client's own.
"""

import asyncio
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks import python_client

H2LOAD = shutil.which("h2load")
CLIENT = "h2load" if H2LOAD else "a client in Python, as h2load is absent: the figures are its own"
_PATIENCE = 120.0
"""Seconds that a turn may take beyond its length."""
_FIRST = 10
"""Calls that are sent before any that are measured, at least."""
_SHARE = 0.9
"""The share of the expected bytes of answers below which calls over gRPC must have failed."""


class LoadFailed(Exception):
    """A load got other answers than it should, or none."""


class Target(NamedTuple):
    """A request, and the address to which it is sent."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    status: int = 200
    """The HTTP status of every answer."""
    is_grpc: bool = False
    """Whether it goes over HTTP/2, all of it on one connection, as a gateway's calls do."""
    answer: int = 0
    """Bytes of an answer over gRPC: the status of a call is in trailers, which h2load does not
    look at, but a call that failed has no message."""


@dataclass(frozen=True, slots=True)
class Load:
    """The measurements of one load."""

    calls: int
    seconds: float
    took: list[float]
    """Seconds that each call took, sorted."""
    client: float
    """Seconds of CPU of the client."""

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds

    def calls_in(self, seconds: float, concurrency: int) -> int:
        """The number of calls that take about so many seconds at this rate, as many for each."""
        return max(1, round(self.rate * seconds / concurrency)) * concurrency

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the calls was answered."""
        return self.took[min(int(share * len(self.took)), len(self.took) - 1)]


async def send(target: Target, concurrency: int, calls: int) -> Load:
    """Send so many calls. Raises LoadFailed."""
    calls = max(calls, concurrency)
    before, began = _client_cpu(), time.perf_counter()
    try:
        async with asyncio.timeout(_PATIENCE):
            if H2LOAD is None:
                took = await python_client.send(target, concurrency, calls)
            else:
                took = await _h2load(H2LOAD, target, concurrency, calls)
    except TimeoutError:
        raise LoadFailed(f"{target.url}: {calls} calls took over {_PATIENCE:.0f} s") from None
    except python_client.Failed as error:
        raise LoadFailed(f"{target.url}: {error}") from None
    return Load(calls, time.perf_counter() - began, sorted(took), _client_cpu() - before)


async def calls_in(target: Target, concurrency: int, seconds: float) -> int:
    """The number of calls that take about so many seconds; it warms the target up, too."""
    calls = max(concurrency, _FIRST)
    await send(target, concurrency, calls)
    while (load := await send(target, concurrency, calls)).seconds < seconds / 3:
        calls = round(calls * min(10, 1 + seconds / load.seconds))
    return load.calls_in(seconds, concurrency)


async def _h2load(program: str, target: Target, concurrency: int, calls: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        log, body = Path(folder, "log"), _file(folder, target.body)
        fields = [part for name, value in target.headers for part in ("-H", f"{name}: {value}")]
        at_once = (
            ["-c", "1", "-m", str(concurrency)] if target.is_grpc else ["-c", str(concurrency)]
        )
        protocol = ["-p", "h2c"] if target.is_grpc else ["--h1"]
        flags = [*protocol, *at_once, "-n", str(calls), "-t", "1", "-d", str(body)]
        process = await asyncio.create_subprocess_exec(
            *(program, *flags, *fields, f"--log-file={log}", target.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return _read(target, calls, output.decode(), log)


def _file(folder: str, body: bytes) -> Path:
    file = Path(folder, "body")
    file.write_bytes(body)
    return file


def _read(target: Target, calls: int, output: str, log: Path) -> list[float]:
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    statuses = Counter(int(line[1]) for line in lines)
    if statuses != {target.status: calls}:
        raise LoadFailed(f"{target.url}: {calls} calls were answered {dict(statuses)}: {output}")
    if target.answer and _data(output) < _SHARE * target.answer * calls:
        raise LoadFailed(f"{target.url}: calls over gRPC failed: {output}")
    return [int(line[2]) / 1e6 for line in lines]


def _data(output: str) -> int:
    """Bytes of the bodies of all answers, from the line "traffic: … (12345) data"."""
    (line,) = (line for line in output.splitlines() if line.startswith("traffic:"))
    return int(line.rpartition("(")[2].partition(")")[0])


def _client_cpu() -> float:
    """CPU of programs that have ended, and of this process where it is the client itself."""
    kinds = [resource.RUSAGE_CHILDREN] + [resource.RUSAGE_SELF] * (H2LOAD is None)
    used = map(resource.getrusage, kinds)
    return sum(one.ru_utime + one.ru_stime for one in used)


def grpc_target(place: str, method: str, message: bytes, answer: int = 0) -> Target:
    """A call of `method`, such as "/package.Service/Method", at `place`."""
    framed = b"\x00" + len(message).to_bytes(4, "big") + message
    headers = (("te", "trailers"), ("content-type", "application/grpc"))
    return Target(f"http://{place}{method}", headers, framed, is_grpc=True, answer=answer)


def http_target(url: str, body: bytes, headers: Mapping[str, str], status: int = 200) -> Target:
    """A POST of `body`."""
    return Target(url, tuple(headers.items()), body, status)
