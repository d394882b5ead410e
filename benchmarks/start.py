"""How long policyd takes from its exec to its first decision, and until it reports that it is
ready.

Each start uses the database that the one before left. If another checkout is given, it takes turns
with this one.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import IO, NamedTuple

import grpc

from benchmarks.checkout import POLICYD, Checkout
from benchmarks.processes import create_key, environment
from benchmarks.rounds import Plan, table, with_spread
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.ports import unused_port
from tests.support.postgresql import PostgreSQL

_PATIENCE = 60.0
"""Seconds that a start may take."""
_LOOK = 0.002
"""Seconds between two tries to connect."""


class _Case(NamedTuple):
    database: str
    workers: int
    console: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that make policyd do so."""
        console = ("--console", "127.0.0.1:0") if self.console else ()
        return ("--workers", str(self.workers), *console)


_CASES = [
    _Case(database, workers, console)
    for database in ("SQLite", "PostgreSQL")
    for workers in (1, 2)
    for console in (False, True)
]


class _Took(NamedTuple):
    decision: float
    ready: float


async def run(folder: Path, plan: Plan, before: Checkout | None = None) -> str:
    """Measure, and return the table."""
    checkouts = [*([before] if before else []), Checkout.this()]
    took: dict[tuple[str, _Case], list[_Took]] = {}
    with ExitStack() as running:
        urls = {one.name: _databases(one, folder, running) for one in checkouts}
        keys = {
            url: create_key(url, str(one.python), "-c", POLICYD, cwd=one.root)
            for one in checkouts
            for url in urls[one.name].values()
        }
        for number in range(plan.rounds + 1):
            if number > 1 and time.monotonic() > plan.until:
                break
            for case in _CASES:
                for one in checkouts if number % 2 else reversed(checkouts):
                    url = urls[one.name][case.database]
                    found = _start(one, folder / one.name, url, keys[url], case)
                    if number:  # The first start creates the database for the others.
                        took.setdefault((one.name, case), []).append(found)
    return table(
        "From exec to the first decision, and to the line that says that all is ready, in s",
        ("", *(f"{one.name}, {what}" for one in checkouts for what in ("decision", "ready"))),
        [_row(case, [took[one.name, case] for one in checkouts]) for case in _CASES],
    )


def _row(case: _Case, columns: Sequence[list[_Took]]) -> list[str]:
    name = f"{case.database}, {case.workers} worker{'s' * (case.workers > 1)}"
    name += ", console" * case.console
    cells = []
    for column in columns:
        cells += [with_spread(one.decision for one in column)]
        cells += [f"{median(one.ready for one in column):.2f}"]
    return [name, *cells]


def _databases(checkout: Checkout, folder: Path, running: ExitStack) -> dict[str, str]:
    place = folder / checkout.name
    place.mkdir()
    server = running.enter_context(PostgreSQL())
    return {
        "SQLite": f"sqlite:///{place}/policyd.db",
        "PostgreSQL": running.enter_context(server.database()),
    }


def _start(checkout: Checkout, folder: Path, url: str, key: str, case: _Case) -> _Took:
    port = unused_port()
    place = folder / f"{case.database}-{case.workers}"
    command = [
        *(str(checkout.python), "-c", POLICYD, "serve", "--database-url", url),
        *("--grpc", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0", *case.flags),
        *("--admin-token-file", str(folder / "admin-token"), "--spool", str(place)),
    ]
    with _output(place.with_suffix(".out")) as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=checkout.root,
            env=environment(),
        )
        try:
            _decide(port, key, begun)
            decided = time.monotonic() - begun
            while b"policyd is ready" not in Path(output.name).read_bytes():
                _wait(begun)
            return _Took(decided, time.monotonic() - begun)
        finally:
            process.send_signal(signal.SIGINT)  # At SIGTERM it would wait for balancers first.
            process.wait(_PATIENCE)


@contextmanager
def _output(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as output:
        yield output


def _decide(port: int, key: str, begun: float) -> None:
    asked = EvaluateRequest(key=key, has_user=False)
    while True:
        _connect(port, begun)
        # A new channel each time: one that has failed waits before it connects again.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            try:
                answer = PolicyServiceStub(channel).Evaluate(asked, timeout=_PATIENCE)
            except grpc.RpcError:
                _wait(begun)
                continue
        assert answer.decision == DECISION_DENY
        return


def _connect(port: int, begun: float) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), _PATIENCE).close()
        except ConnectionRefusedError:
            _wait(begun)
        else:
            return


def _wait(begun: float) -> None:
    if time.monotonic() > begun + _PATIENCE:
        raise RuntimeError("policyd makes no decision")
    time.sleep(_LOOK)
