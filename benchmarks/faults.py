"""What faults cost a whole deployment under load: `python -m benchmarks.faults`.

Prints a Markdown table. Lost, unchecked and repeated requests are found by comparing request by
request: see rig.py. `--root DIR` runs the same faults on the servers of another checkout.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import click

from benchmarks.postgresql_faults import ON_POSTGRESQL
from benchmarks.rig import Counts, Rig, count, rig
from benchmarks.rounds import table
from benchmarks.sqlite_faults import ON_SQLITE
from benchmarks.striking import (
    RECOVERIES,
    STRUCK_AT,
    Plan,
)
from tests.support import processes
from tests.support.postgresql import PostgreSQL
from tests.support.stack import Background


class Report(NamedTuple):
    """What one fault did."""

    name: str
    counts: Counts
    longest: float
    """The longest time without any decision, in seconds."""
    recovered: float | None
    """Seconds after the fault until decisions, log and settings were all as before."""
    before: float
    during: float
    """Milliseconds within which 99 of 100 decisions came."""


async def _run(name: str, plan: Plan, folder: Path, background: Background) -> Report:
    fault = ON_SQLITE.get(name)
    if fault is not None:
        with rig(folder, f"sqlite:///{folder}/policyd.db", background) as made:
            await fault(made, plan)
            return _report(name, fault.__doc__ or name, made)
    with PostgreSQL() as server, server.database() as url, rig(folder, url, background) as made:
        await ON_POSTGRESQL[name](made, plan, server)
        if not server.socket.exists():
            server.start()  # The fault ended too early.
        return _report(name, ON_POSTGRESQL[name].__doc__ or name, made)


def _report(name: str, words: str, made: Rig) -> Report:
    recovered = RECOVERIES[0] if RECOVERIES else None
    gap = made.longest_gap(STRUCK_AT[0])
    problems = [line for one in made.replicas for line in one.errors if "Traceback" in line]
    if problems:
        sys.stderr.write(f"{name}: {len(problems)} tracebacks\n")
    before, during = made.percentiles(STRUCK_AT[0])
    return Report(words.split("\n")[0], count(made), gap, recovered, before, during)


def as_row(report: Report) -> tuple[str, ...]:
    """A report as a row of the table."""
    counts = report.counts
    statuses = ", ".join(f"{number}: {status}" for status, number in counts.statuses.items())
    recovered = "not" if report.recovered is None else f"{report.recovered:.1f}"
    return (
        report.name,
        str(counts.sent),
        statuses,
        str(counts.rows),
        str(counts.flags),
        *map(str, (counts.unchecked, counts.lost, counts.unlogged, counts.twice)),
        str(counts.sent_twice),
        str(counts.dropped),
        f"{report.longest:.1f}",
        recovered,
        f"{report.before:.0f} / {report.during:.0f}",
    )


HEAD = [
    *("fault", "requests", "answers: status", "rows", "flags", "unchecked upstream"),
    *(
        "flags lost",
        "allowed, not logged",
        "logged twice",
        "sent upstream twice",
        "counted as dropped",
    ),
    *(
        "longest without a decision, s",
        "as before after, s",
        "99 % of decisions before / from then on, ms",
    ),
]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Few and short faults, to try it.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Another checkout with a .venv, in whose servers the faults are caused.",
)
@click.argument("faults", nargs=-1, type=click.Choice([*ON_SQLITE, *ON_POSTGRESQL]))
def main(quick: bool, root: Path | None, faults: tuple[str, ...]) -> None:
    """Cause FAULTS, or all of them, in a deployment under load, and print what they cost."""
    plan = Plan(seconds=5, kills=5, restarts=3, held=300, clients=100) if quick else Plan()
    if root:
        processes.BIN = root.resolve() / ".venv/bin"
    background = Background()
    rows = []
    try:
        for name in faults or [*ON_SQLITE, *ON_POSTGRESQL]:
            sys.stderr.write(f"{name} …\n")
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                try:
                    report = asyncio.run(_run(name, plan, Path(folder) / "rig", background))
                except Exception as problem:  # noqa: BLE001  # The others are of use without it.
                    sys.stderr.write(f"  {name}: {problem!r}\n")
                    rows.append(
                        (name, f"failed: {type(problem).__name__}", *[""] * (len(HEAD) - 2))
                    )
                else:
                    rows.append(as_row(report))
                sys.stderr.write("  " + " | ".join(rows[-1]) + "\n")
    finally:
        background.close()
    click.echo(table("What faults cost", HEAD, rows))


if __name__ == "__main__":
    main()
