"""A policyd and what belongs to it, as the benchmarks run it."""

import asyncio
import sqlite3
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.processes import (
    BACKGROUND,
    BIN,
    POLICYD_HAS_HTTP,
    POLICYD_IS_READY,
    Program,
    Tree,
    create_key,
    environment,
    policyd,
    started,
)

GATEWAY, POLICYD, WORKER = "gateway", "policyd", "background worker"
GATEWAY_IS_READY = r"policyd-gateway is ready: (\S+)"
LOCAL_FLAG = "--local-token-file"
_QUIET = 0.4
"""Seconds in which no entry comes after which the log counts as shipped: a gateway reports
outcomes after 0.1 s, and policyd ships what waits some tenths of a second later."""
_PATIENCE = 60.0


class Deployment:
    """A running policyd with a database and a key that enforces user IDs, in a folder of its own.

    `command` runs it, if not `policyd` itself. It answers HTTP, too, where it is `over_http`.
    """

    def __init__(
        self,
        folder: Path,
        running: ExitStack,
        *flags: str,
        command: Iterable[str] = (),
        over_http: bool = False,
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self._database = folder / "policyd.db"
        self._spools = [folder / "policyd.db-spool"]
        url = f"sqlite:///{self._database}"
        self.key = create_key(url)
        http = ("--http", "127.0.0.1:0") if over_http else ()
        command_line = (*policyd(url, *command), *http, *flags)
        ready = POLICYD_HAS_HTTP if over_http else POLICYD_IS_READY
        self.program = running.enter_context(started(*command_line, ready=ready))

    @property
    def place(self) -> str:
        """The address that callers ask over gRPC."""
        return self.program.places[0]

    @property
    def http(self) -> str:
        """The URL that callers ask over HTTP."""
        return self.program.places[2]

    @property
    def parts(self) -> Mapping[str, Tree]:
        """Its processes: those that decide, and the background worker that ships the log."""
        pid = self.program.pid
        return {POLICYD: Tree(pid, but=BACKGROUND), WORKER: Tree(pid, only=BACKGROUND)}

    def add_spool(self, folder: Path) -> Path:
        """A further spool whose entries go to this database: a gateway's. Returns its folder."""
        self._spools.append(folder)
        return folder

    async def shipped(self) -> None:
        """Wait until the database has every logged entry. Raises TimeoutError."""
        quiet, size = 0.0, -1
        async with asyncio.timeout(_PATIENCE):
            while quiet < _QUIET:
                await asyncio.sleep(_QUIET / 4)
                now = sum(_sizes(self._spools).values())
                is_quiet = now == size and not waiting(self._database, self._spools)
                quiet, size = quiet + _QUIET / 4 if is_quiet else 0.0, now


def waiting(database: Path, spools: Iterable[Path]) -> int:
    """Bytes of the spools that the database does not have yet."""
    sizes = _sizes(spools)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        shipped = dict(connection.execute("SELECT file, shipped FROM spool_positions").fetchall())
    return sum(max(0, size - shipped.get(name, 0)) for name, size in sizes.items())


def _sizes(spools: Iterable[Path]) -> dict[str, int]:
    found = {}
    for file in (file for spool in spools for file in spool.glob("*.jsonl")):
        try:
            found[file.name] = file.stat().st_size
        except FileNotFoundError:
            continue  # Shipped and deleted.
    return found


def start_gateway(
    running: ExitStack,
    policyd_at: str,
    upstream: str,
    *flags: str,
    command: Iterable[str] = ("policyd-gateway",),
) -> Program:
    """A gateway that runs until `running` ends; its one place is its URL."""
    serve = ("serve", "--listen", "127.0.0.1:0", "--policyd", policyd_at, "--upstream", upstream)
    # A machine that is busy fails no request.
    patience = ("--policy-timeout", "30")
    return running.enter_context(
        started(*command, *serve, *patience, *flags, ready=GATEWAY_IS_READY)
    )


def knows(program: str, words: str) -> bool:
    """Whether the help of `program serve` of this version has these words, such as a flag."""
    command = [str(BIN / program), "serve", "--help"]
    env = environment()
    shown = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=True)
    return f"{words} " in " ".join(shown.stdout.split())
