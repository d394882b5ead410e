"""The programs under measurement, each a process of its own on free ports of the loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
_PATIENCE = 60.0
"""Seconds that a program may take to be ready, ..."""
_ENDING = 15.0
"""... and to end."""
BACKGROUND = "policyd.server.background"
"""What the command line of policyd's background worker has in it."""


class Program(NamedTuple):
    """A running program."""

    pid: int
    places: tuple[str, ...]
    """The addresses at which it listens, from its output."""


class Tree(NamedTuple):
    """A process with all that it has started, directly or not; or some of these processes."""

    pid: int
    only: str = ""
    """Count only processes whose command line has this in it, ..."""
    but: str = ""
    """... and none whose command line has this."""

    def cpu(self) -> dict[int, float]:
        """Seconds of CPU that each of its processes has used until now."""
        return {pid: cpu for pid in tree(self.pid) if self._has(pid) if (cpu := cpu_seconds(pid))}

    def _has(self, pid: int) -> bool:
        if not self.only and not self.but:
            return True
        words = _command_line(pid)
        return self.only in words and not (self.but and self.but in words)


def tree(pid: int) -> list[int]:
    """The process `pid`, and all that it has started, directly or not."""
    found = [pid]
    for one in found:
        found += _children(one)
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time that the process `pid` has used, by its CPU clock, see clock_gettime(2) of Linux;
    0 where it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


@contextmanager
def started(
    *command: str,
    ready: str,
    at: str = "",
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """Run a command until the end of the block, which begins once it has printed `ready`.

    If the address `at` is given, it has to take connections there, too. `env` is added to its
    environment.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment() | dict(env or {}),
        )
        try:
            yield Program(process.pid, _wait_until_ready(process, output, ready, at))
        finally:
            _end(process, output)


def policyd(database_url: str, *command: str) -> tuple[str, ...]:
    """The command line of `policyd serve`; `command` is what runs it, if not `policyd` itself."""
    listen = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    return (*(command or ("policyd",)), "serve", "--database-url", database_url, *listen)


POLICYD_IS_READY = r"policyd is ready: grpc=(\S+) admin=(\S+)"
POLICYD_HAS_HTTP = POLICYD_IS_READY + r" http=(\S+)"


def create_key(database_url: str, *command: str, cwd: Path = ROOT) -> str:
    """A new API key that enforces user IDs; `command` makes it, if not `policyd` itself."""
    program, *arguments = command or ("policyd",)
    flags = ("--enforce-user-ids", "enforce", "--json", "--database-url", database_url)
    made = subprocess.run(
        [str(BIN / program), *arguments, "keys", "create", "benchmark", *flags],
        capture_output=True,
        cwd=cwd,
        env=environment(),
        check=True,
        timeout=_PATIENCE,
    )
    return str(json.loads(made.stdout)["key"])


def environment() -> dict[str, str]:
    """This environment without what would change how policyd or its gateway run."""
    foreign = ("POLICYD_", "GATEWAY_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"PYTHONUNBUFFERED": "1"}


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        lines = [(task / "children").read_text() for task in tasks]
    except OSError:  # It has ended, or one of its threads has.
        return []
    return [int(child) for line in lines for child in line.split()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _wait_until_ready(
    process: subprocess.Popen[bytes], output: IO[str], ready: str, at: str
) -> tuple[str, ...]:
    give_up = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < give_up:
        match = re.search(ready, _read(output))
        if match and (not at or _takes_connections(at)):
            return match.groups()
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not get ready: {_read(output)[-4000:]}")


def _takes_connections(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes], output: IO[str]) -> None:
    if process.poll() is not None:
        sys.stderr.write(f"{process.args!r} ended by itself:\n{_read(output)[-4000:]}\n")
        return
    process.send_signal(signal.SIGINT)  # At SIGTERM ours would wait for balancers first.
    try:
        process.wait(_ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(output: IO[str]) -> str:
    output.seek(0)
    return output.read()
