"""The command line: `python -m benchmarks [--quick] [PART]`, which `make bench` calls."""

import asyncio
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import click
import uvloop

from benchmarks import core, envoy, evaluate, gateway, hostile, log, start, store, watched
from benchmarks.checkout import Checkout
from benchmarks.rounds import Plan

PARTS = {
    "evaluate": evaluate.run,
    "gateway": gateway.run,
    "envoy": envoy.run,
    "log": log.run,
    "core": core.run,
    "store": store.run,
    "hostile": hostile.run,
    "start": start.run,
    "watched": watched.run,
}
PLANS = {
    "evaluate": Plan(rounds=9, seconds=0.35),
    "gateway": Plan(rounds=9, seconds=0.5),
    "envoy": Plan(rounds=9, seconds=0.5),
    "log": Plan(rounds=9, seconds=0.5),
    "core": Plan(rounds=9, seconds=0.02),
    "store": Plan(rounds=10, seconds=0, rows=1_000_000),
    "hostile": Plan(rounds=9, seconds=0),
    "start": Plan(rounds=10, seconds=0),
    "watched": Plan(rounds=9, seconds=0.5),
}
QUICK = Plan(rounds=2, seconds=0.1, rows=10_000)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Run for seconds only; the figures mean little.")
@click.option("--only", type=click.Choice(list(PARTS)), help="The same as PART.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="For hostile and start: another checkout, whose servers are measured for comparison.",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="PATH",
    help="The Python that runs that checkout; DIR/.venv/bin/python unless given.",
)
@click.argument("part", type=click.Choice(list(PARTS)), required=False)
def main(
    quick: bool, only: str | None, root: Path | None, python: Path | None, part: str | None
) -> None:
    """Measure policyd and its gateway, all of it or PART, and print the results as Markdown.

    It takes about fifteen minutes and both cores of a small machine; run nothing else on it
    meanwhile. Figures with a range are medians over the rounds, and the range holds the middle half
    of them.

    hostile puts the loads of a client without a key on the servers, and measures what other clients
    notice; with --root, on the servers of two checkouts in turn. start takes --root, too.
    """
    if python and not root:
        raise click.UsageError("--python is the Python of --root: give both")
    only = part or only
    before = Checkout.other(root, python) if root else None
    parts = PARTS | {
        "hostile": partial(hostile.run, before=before),
        "start": partial(start.run, before=before),
    }
    started = time.monotonic()
    click.echo(f"Load of the machine before: {_load()}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in [only] if only else parts:
            sys.stderr.write(f"{name} …\n")
            plan = QUICK if quick else PLANS[name]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                click.echo(runner.run(parts[name](Path(folder), plan)) + "\n")
    click.echo(f"Load after: {_load()}; {time.monotonic() - started:.0f} s")


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


if __name__ == "__main__":
    main()
