"""The command line: `python -m benchmarks [--quick] [PART]`, which `make bench` calls."""

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import pages, report
from benchmarks.check import moved
from benchmarks.checkout import Checkout
from benchmarks.findings import Findings
from benchmarks.part import run
from benchmarks.parts import CHECK, CHECKED, PARTS, QUICK
from benchmarks.rounds import Plan

_MINUTES = 20.0
_QUICK_LIMIT = 60.0
_COMPARED = ("bodies", "hostile", "start")
"""The parts that take another checkout."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Try it for a minute or two; the figures mean little.")
@click.option("--check", is_flag=True, help="Compare ratios with those of figures.json.")
@click.option("--minutes", default=_MINUTES, show_default=True, help="The time for all parts.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where REPORT.md, charts and figures.json go; by default benchmarks/, where all is run.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="For bodies, hostile and start: another checkout, which is measured for comparison.",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="PATH",
    help="The Python that runs that checkout; DIR/.venv/bin/python unless given.",
)
@click.argument("part", type=click.Choice(list(PARTS)), nargs=-1)
def main(
    quick: bool,
    check: bool,
    minutes: float,
    out: Path | None,
    root: Path | None,
    python: Path | None,
    part: tuple[str, ...],
) -> None:
    """Measure policyd and its gateway: all of it, or each PART.

    All of it takes about twenty minutes and both cores of a small machine; run nothing else on it
    meanwhile. It writes the report, benchmarks/REPORT.md, and what README.md and
    docs/performance.md say of it. PARTs, and --quick, are printed as Markdown. A part that fails is
    named in the report, and the others go on.

    With --check some parts are measured for a shorter time, and their ratios compared with those of
    benchmarks/figures.json. The exit status is 1 if one has moved by more than its tolerance.
    """
    if python and not root:
        raise click.UsageError("--python is the Python of --root: give both")
    # What runs is ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    before = Checkout.other(root, python) if root else None
    plan = QUICK if quick else CHECK if check else None
    names = part or (CHECKED if check else tuple(PARTS))
    conditions = {"load before": _load(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    began = time.monotonic()
    found = _measure(names, plan, began + 60 * minutes, before)
    conditions["load after"] = _load()
    conditions["took"] = f"{time.monotonic() - began:.0f} s"
    if check:
        sys.exit(_compare(found))
    is_all = not (quick or part)
    if folder := out or (report.FOLDER if is_all else None):
        report.write(folder, found, conditions)
        click.echo(f"The report is {folder / 'REPORT.md'}")
    else:
        click.echo(report.compose(found, conditions))
    if is_all and not out:
        pages.write(found)


def _measure(
    names: tuple[str, ...], plan: Plan | None, until: float, before: Checkout | None
) -> dict[str, Findings]:
    found = {}
    for name in names:
        part = PARTS[name]
        left = until - time.monotonic()
        limit = min(_QUICK_LIMIT if plan else part.limit, left)
        if left < _QUICK_LIMIT / 6:
            found[name] = Findings(absent=[f"{name}: the time was over"])
            continue
        sys.stderr.write(f"{name} … ({limit:.0f} s at most)\n")
        found[name] = run(name, plan or part.plan, limit, before if name in _COMPARED else None)
        for one in found[name].absent:
            sys.stderr.write(f"  absent: {one}\n")
    return found


def _compare(found: dict[str, Findings]) -> int:
    committed = json.loads((report.FOLDER / "figures.json").read_text())
    lines, count = moved(report.figures(found), committed)
    click.echo(f"{count} ratios compared, {len(lines)} moved")
    for line in lines:
        click.echo(line)
    for one in (absent for findings in found.values() for absent in findings.absent):
        click.echo(f"not measured: {one}")
    return int(bool(lines) or not count)


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


if __name__ == "__main__":
    main()
