"""The command line: `python -m benchmarks [--quick] [--only PART]`, which `make bench` calls."""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import click
import uvloop

from benchmarks import core, envoy, evaluate, gateway, log, store
from benchmarks.rounds import Plan

PARTS = {
    "evaluate": evaluate.run,
    "gateway": gateway.run,
    "envoy": envoy.run,
    "log": log.run,
    "core": core.run,
    "store": store.run,
}
PLANS = {
    "evaluate": Plan(rounds=9, seconds=0.35),
    "gateway": Plan(rounds=9, seconds=0.5),
    "envoy": Plan(rounds=9, seconds=0.5),
    "log": Plan(rounds=9, seconds=0.5),
    "core": Plan(rounds=9, seconds=0.02),
    "store": Plan(rounds=10, seconds=0, rows=1_000_000),
}
QUICK = Plan(rounds=2, seconds=0.1, rows=10_000)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A few seconds, to try it; the figures mean little.")
@click.option("--only", type=click.Choice(list(PARTS)), help="One part of all.")
def main(quick: bool, only: str | None) -> None:
    """Measure policyd and its gateway, and print what was found as Markdown.

    It takes about ten minutes and both cores of a small machine; leave that alone meanwhile.
    Figures with a range are medians over the rounds, and the range holds the middle half of them.
    """
    started = time.monotonic()
    click.echo(f"Load of the machine before: {_load()}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        for part in [only] if only else PARTS:
            sys.stderr.write(f"{part} …\n")
            plan = QUICK if quick else PLANS[part]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                click.echo(runner.run(PARTS[part](Path(folder), plan)) + "\n")
    click.echo(f"Load after: {_load()}; {time.monotonic() - started:.0f} s")


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


if __name__ == "__main__":
    main()
