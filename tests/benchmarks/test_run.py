"""The benchmark as `make bench` runs it, by its cheapest part."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.check import moved
from benchmarks.deployment import waiting
from benchmarks.findings import Figure
from benchmarks.part import run
from benchmarks.parts import PARTS
from benchmarks.rounds import Plan
from policyd.store import Store

ROOT = Path(__file__).parents[2]


def test_a_quick_run_writes_the_report_and_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "core", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    text = (tmp_path / "REPORT.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        *("## In short", f"## {PARTS['core'].about} (`core`)", "## All ratios"),
        *("## What could not be measured", "## Machine and versions"),
    ]
    assert "| decide, allowed | " in text
    assert "| Python | " in text
    figure = json.loads((tmp_path / "figures.json").read_text())["core: decide, allowed"]
    assert 0 < figure["low"] <= figure["value"] <= figure["high"]
    assert figure["unit"] == "µs"


def test_a_part_that_is_not_there_is_named() -> None:
    found = run("nothing", Plan(1, 0), 1)
    assert found.absent == ["nothing: this version has no such part"]


def test_ratios_that_moved_beyond_their_noise_are_listed_with_their_way() -> None:
    found = {
        "CPU": Figure(1.5, 1.5, 1.5),
        "rate": Figure(1.5, 1.5, 1.5, better="higher"),
        "noisy": Figure(1.5, 1.2, 1.8),
        "steady": Figure(1.05, 1.05, 1.05),
        "latency": Figure(9.0, 9.0, 9.0, unit="ms"),
        "new": Figure(9.0, 9.0, 9.0),
    }
    steady = Figure(1.0, 1.0, 1.0)
    before = steady._asdict() | {"tolerance": steady.tolerance}
    committed = {name: dict(before) for name in found if name != "new"}
    committed["latency"]["unit"] = "ms"
    lines, count = moved(found, committed)
    assert [line.partition(":")[0] for line in lines] == ["worse", "better"]
    assert ["CPU" in lines[0], "rate" in lines[1]] == [True, True]
    assert count == 4


def test_entries_that_wait_in_a_spool_are_told_from_shipped_ones(tmp_path: Path) -> None:
    database = tmp_path / "policyd.db"
    store = Store(f"sqlite:///{database}")
    store.migrate()
    store.close()
    spool = tmp_path / "policyd.db-spool"
    spool.mkdir()
    assert waiting(database, [spool]) == 0
    (spool / "process-1.jsonl").write_bytes(b"{}\n{}\n")
    assert waiting(database, [spool]) == 6
    with closing(sqlite3.connect(database)) as connection, connection:
        row = ("spool", "process-1.jsonl", 3, "2026-01-01")
        connection.execute("INSERT INTO spool_positions VALUES (?, ?, ?, ?)", row)
    assert waiting(database, [spool]) == 3


@pytest.mark.parametrize("name", list(PARTS))
def test_every_part_has_a_module(name: str) -> None:
    assert (ROOT / "benchmarks" / f"{name}.py").exists()
