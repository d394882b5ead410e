"""The programs under measurement, each a process of its own on free ports of the loopback."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
_PATIENCE = 30.0
"""Seconds that a program may take to be ready, and to end."""


class Program(NamedTuple):
    """A running program."""

    pid: int
    places: tuple[str, ...]
    """The addresses at which it listens, from its output."""


def cpu_seconds(pid: int) -> float:
    """CPU time that the process `pid` has used; its CPU clock is Linux's, see clock_gettime(2)."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def started(*command: str, ready: str, cwd: Path = ROOT) -> Iterator[Program]:
    """Run a command until the end of the block, which begins once it has printed `ready`."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(),
        )
        try:
            yield Program(process.pid, _wait_until_ready(process, output, ready))
        finally:
            _end(process, output)


def policyd(database_url: str, *command: str) -> tuple[str, ...]:
    """The command line of `policyd serve`; `command` is what runs it, if not `policyd` itself."""
    listen = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    return (*(command or ("policyd",)), "serve", "--database-url", database_url, *listen)


POLICYD_IS_READY = r"policyd is ready: grpc=(\S+) admin=(\S+)"


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


def _wait_until_ready(
    process: subprocess.Popen[bytes], output: IO[str], ready: str
) -> tuple[str, ...]:
    give_up = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < give_up:
        if match := re.search(ready, _read(output)):
            return match.groups()
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not get ready")


def _end(process: subprocess.Popen[bytes], output: IO[str]) -> None:
    if process.poll() is not None:
        sys.stderr.write(f"{process.args!r} ended by itself:\n{_read(output)}\n")
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(output: IO[str]) -> str:
    output.seek(0)
    return output.read()
