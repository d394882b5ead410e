"""Ctrl-C in the first seconds of a command, while it still loads what it is made of."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import put_database
from tests.support.processes import environment

# It sends itself the signal so many seconds after it has begun to load the command, and once more
# each five seconds: Python itself loses one that comes while it runs a callback of its imports.
_PROGRAM = """
import os, signal, sys, threading, time
import policyd.extras
delay, program, *words = sys.argv[1:]
sys.argv[:] = [program, *words]
def interrupt():
    time.sleep(float(delay))
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

threading.Thread(target=interrupt, daemon=True).start()
getattr(policyd.extras, program.replace("-", "_"))()
"""
COMMANDS = {
    "keys": ("policyd", "keys", "list", "--database-url", "URL"),
    "tail": ("policyd", "logs", "tail", "--database-url", "URL"),
    "demo": ("policyd", "demo", "--data", "DATA", *("--gateway", "127.0.0.1:0")),
    "gateway": ("policyd-gateway", "serve", "--listen", "127.0.0.1:0"),
    "serve": ("policyd", "serve", "--database-url", "URL", "--grpc", "127.0.0.1:0"),
}
FREE = ("--admin", "127.0.0.1:0")
MORE = {"demo": ("--grpc", "127.0.0.1:0", "--console", "127.0.0.1:0"), "serve": FREE}


@pytest.mark.slow
@pytest.mark.parametrize("delay", ["0.05", "0.2", "0.6", "1.5"])
@pytest.mark.parametrize("name", COMMANDS)
def test_at_any_time(name: str, delay: str, tmp_path: Path) -> None:
    """An interrupted command says nothing about what it was doing, and ends with the status for
    that."""
    places = {"URL": put_database(f"sqlite:///{tmp_path}/policyd.db"), "DATA": str(tmp_path / "d")}
    words = [places.get(word, word) for word in (*COMMANDS[name], *MORE.get(name, ()))]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, delay, *words],
        capture_output=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert b"Aborted" not in done.stderr
    # A server that runs already ends as it was asked to; a quick command may be done before.
    assert done.returncode in (130, 0), done.stderr


def test_a_child_that_starts(tmp_path: Path) -> None:
    """A worker process leaves Ctrl-C to its parent from the beginning."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, sys\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print(__name__, sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "policyd.command.start", "slow", "info"],
        capture_output=True,
        env=environment({"PYTHONPATH": str(tmp_path)}),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"__main__ ['info']\n"), done.stderr
