"""One part of the benchmark, in a process of its own: `python -m benchmarks.part`.

So a part that fails or hangs leaves the others alone, and all that it started can be ended.
"""

import asyncio
import ctypes
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.checkout import Checkout
from benchmarks.findings import Findings
from benchmarks.processes import ROOT, tree
from benchmarks.rounds import Plan

_ENDING = 20.0
"""Seconds that a part may take to end what it has started."""
_EXTRA = 120.0
"""Seconds beyond its limit, after which a part is ended: its last round may be under way."""
_SET_CHILD_SUBREAPER = 36


def run(name: str, plan: Plan, limit: float, before: Checkout | None = None) -> Findings:
    """Run the part `name`, which begins no round after `limit` seconds, and end what it leaves.

    What it writes to standard error is passed on.
    """
    if importlib.util.find_spec(f"benchmarks.{name}") is None:
        return Findings(absent=[f"{name}: this version has no such part"])
    # Processes whose parent has ended become children of this one, so that none is overlooked.
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    asked = {"name": name, "plan": list(plan), "limit": limit}
    asked["before"] = [before.name, str(before.root), str(before.python)] if before else None
    with tempfile.TemporaryDirectory(prefix="policyd-bench-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.part", folder, json.dumps(asked)],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
        )
        try:
            process.wait(limit + _EXTRA)
        except subprocess.TimeoutExpired:
            return Findings(absent=[f"{name}: ended after {limit + _EXTRA:.0f} s"])
        finally:
            _end(process)
        result = Path(folder, "result.json")
        if process.returncode or not result.exists():
            error = Path(folder, "error")
            why = error.read_text() if error.exists() else f"exit status {process.returncode}"
            return Findings(absent=[f"{name}: failed: {why}"])
        return Findings.load(json.loads(result.read_text()))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the part, and all that it has started and not ended, by their IDs."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # Its loop cancels it, so that it ends what it started.
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING)
    while left := tree(os.getpid())[1:]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)
    process.poll()


def main() -> None:
    """Run the part that the command line names, and write its findings."""
    # Also where a shell has started this in the background, which ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    try:
        found = _run(folder, asked)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # It took too long.
    except Exception as error:
        (folder / "error").write_text(f"{type(error).__name__}: {error}"[:600])
        raise
    (folder / "result.json").write_text(json.dumps(found.dump()))


def _run(folder: Path, asked: dict[str, Any]) -> Findings:
    name, plan = asked["name"], Plan(*asked["plan"])
    plan = plan._replace(concurrencies=tuple(plan.concurrencies))
    plan = plan._replace(until=time.monotonic() + asked["limit"])
    module = importlib.import_module(f"benchmarks.{name}")
    inside = folder / "run"
    inside.mkdir()
    if hasattr(module, "measure"):
        return Findings.of(name, module.measure(inside, plan))
    before, more = asked["before"], {}
    if before:
        more["before"] = Checkout(before[0], Path(before[1]), Path(before[2]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return Findings.of(name, runner.run(module.run(inside, plan, **more)))


if __name__ == "__main__":
    main()
