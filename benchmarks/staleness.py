"""How long a change of settings takes to be in force: `python -m benchmarks.staleness`.

Three replicas share one PostgreSQL. A key's mode is toggled again and again, while all replicas are
asked all the time. It measures from the commit until each replica decides by the new mode for good.
"""

import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import grpc

from benchmarks.rounds import table
from policyd.engine.states import Mode
from policyd.store import Store
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support import processes
from tests.support.load import MODE, keys
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd

_REPLICAS = 3
_PAUSE = 0.002
"""Seconds between two requests to a replica."""
_SETTLED = 0.05
"""Seconds for which a replica is watched after its first decision by the new mode."""


class Found(NamedTuple):
    """The measurements of all toggles and replicas."""

    seconds: list[float]
    old_after_new: int
    """Decisions by the old mode after one by the new mode."""


async def _toggle(store: Store, key: dict[str, str], stubs: list[Any], number: int) -> Found:
    mode = Mode.OFF if number % 2 else Mode.ENFORCE
    await asyncio.to_thread(store.keys.update, key["id"], {"mode": mode})
    committed = time.monotonic()
    watched = [_watch(stub, key["key"], mode is Mode.ENFORCE, committed) for stub in stubs]
    found = await asyncio.gather(*watched)
    return Found([took for took, _ in found], sum(old for _, old in found))


async def _watch(stub: Any, key: str, denies: bool, since: float) -> tuple[float, int]:
    request = EvaluateRequest(key=key, has_user=False)
    first: float | None = None
    old = 0
    while first is None or time.monotonic() - first < _SETTLED:
        answer = await stub.Evaluate(request, timeout=10)
        if (answer.decision == DECISION_DENY) is denies:
            first = first or time.monotonic()
        elif first is not None:
            old += 1
        await asyncio.sleep(_PAUSE)
    return first - since, old


async def _measure(folder: Path, url: str, toggles: int) -> Found:
    key = keys(url, "create", "test", *MODE, "enforce")
    store = Store(url)
    with contextlib.ExitStack() as running:
        running.callback(store.close)
        places = []
        for number in range(_REPLICAS):
            place = folder / str(number)
            place.mkdir(parents=True)
            server = Policyd(place, database_url=url)
            running.callback(server.stop)
            places.append(server.grpc)
        async with contextlib.AsyncExitStack() as open_channels:
            stubs = [
                PolicyServiceStub(
                    await open_channels.enter_async_context(grpc.aio.insecure_channel(place))
                )
                for place in places
            ]
            found = [await _toggle(store, key, stubs, number) for number in range(1, toggles + 1)]
    return Found(
        [one for some in found for one in some.seconds], sum(f.old_after_new for f in found)
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--toggles", default=500, type=click.IntRange(1), help="Changes of the key's mode.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Another checkout with a .venv, whose servers are measured.",
)
def main(toggles: int, root: Path | None) -> None:
    """Toggle a key's mode, and print how long three replicas take to follow."""
    if root:
        processes.BIN = root.resolve() / ".venv/bin"
    with tempfile.TemporaryDirectory() as folder, PostgreSQL() as server, server.database() as url:
        found = asyncio.run(_measure(Path(folder), url, toggles))
    ordered = sorted(found.seconds)
    row = (
        toggles,
        _REPLICAS,
        *(
            f"{1000 * one:.0f} ms"
            for one in (statistics.median(ordered), _p99(ordered), ordered[-1])
        ),
        found.old_after_new,
    )
    head = ["toggles", "replicas", "median", "99 %", "worst", "old answers after a new one"]
    click.echo(table("Staleness", head, [row]))


def _p99(ordered: list[float]) -> float:
    return ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)]


if __name__ == "__main__":
    main()
