"""The servers of a checkout of this repository, so that one run can compare two versions."""

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.deployment import GATEWAY_IS_READY
from benchmarks.processes import (
    POLICYD_IS_READY,
    ROOT,
    Program,
    create_key,
    policyd,
    started,
    tree,
)
from benchmarks.upstream import upstream

POLICYD = "from policyd.cli.main import main; main()"
"""The program in place of the command, so that the folder decides which version runs."""
_GATEWAY = "from gateway.cli import main; main()"
_LIMITED = ("/bin/sh", "-c", 'ulimit -n "$0"; exec "$@"')


class Checkout(NamedTuple):
    """A version: its folder, and the Python that has its dependencies."""

    name: str
    root: Path
    python: Path

    @classmethod
    def this(cls) -> "Checkout":
        """The checkout that this file belongs to."""
        return cls("after", ROOT, Path(sys.executable))

    @classmethod
    def other(cls, root: Path, python: Path | None) -> "Checkout":
        """The checkout in the folder `root`; by default with its own .venv."""
        return cls("before", root.resolve(), python or root.resolve() / ".venv/bin/python")


class Servers(NamedTuple):
    """A running policyd, gateway and upstream."""

    key: str
    policyd: Program
    gateway: Program
    database: Path
    """Its folder contains nothing else but the spool and the token."""

    @property
    def url(self) -> str:
        """URL of the gateway."""
        return self.gateway.places[0]

    @property
    def grpc(self) -> str:
        """Address of policyd's gRPC listener."""
        return self.policyd.places[0]

    @property
    def http(self) -> str:
        """URL of policyd's HTTP check."""
        return f"http://{self.policyd.places[2]}"

    def peak_memory(self) -> int:
        """Sum of the largest memory, in bytes, of the gateway's and policyd's processes."""
        pids = [*tree(self.gateway.pid), *tree(self.policyd.pid)]
        return sum(_peak(pid) for pid in pids)

    def rows(self) -> int:
        """How many rows the database has, in all tables together."""
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            names = [name for (name,) in connection.execute(query)]
            counts = (connection.execute(f'SELECT count(*) FROM "{name}"') for name in names)  # noqa: S608  # our own names
            return sum(count.fetchone()[0] for count in counts)

    def stored(self) -> int:
        """Bytes of the database and the spool."""
        return sum(_size(file) for file in self.database.parent.rglob("*"))

    def waiting(self) -> int:
        """Bytes in the spool that are not in the database yet, or not deleted yet."""
        return sum(_size(file) for file in self.database.parent.rglob("*.jsonl"))


@contextmanager
def servers(checkout: Checkout, folder: Path, *, files: int | None = None) -> Iterator[Servers]:
    """Servers with an empty database in `folder`, each with as many `files` as it may open."""
    folder.mkdir(parents=True)
    database = folder / "policyd.db"
    url = f"sqlite:///{database}"
    python = (str(checkout.python), "-c")
    before = (*_LIMITED, str(files), *python) if files else python
    with ExitStack() as running:
        key = create_key(url, *python, POLICYD, cwd=checkout.root)
        ask = policyd(url, *before, POLICYD)
        ready = rf"{POLICYD_IS_READY} http=(\S+)"
        server = running.enter_context(
            started(*ask, "--http", "127.0.0.1:0", ready=ready, cwd=checkout.root)
        )
        outside = folder.with_name(f"{folder.name}-stub")
        outside.mkdir()
        stub = running.enter_context(upstream(outside))
        flags = ("--policyd", server.places[0], "--upstream", stub.places[0])
        gateway = running.enter_context(
            started(
                *(*before, _GATEWAY, "serve", "--listen", "127.0.0.1:0", *flags),
                ready=GATEWAY_IS_READY,
                cwd=checkout.root,
            )
        )
        yield Servers(key, server, gateway, database)


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0
