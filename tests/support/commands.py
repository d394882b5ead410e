"""Our commands in the tests' own process: an interpreter of its own costs a second."""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from click.testing import CliRunner

from gateway.cli import main as policyd_gateway
from policyd.cli.main import main as policyd
from tests.support.processes import environment

_COMMANDS = {"policyd": policyd, "policyd-gateway": policyd_gateway}


def logged(url: str, decision_id: str) -> dict[str, Any]:
    """The entry of the decision log in the database at `url`, once it is there."""
    until = time.monotonic() + 60
    while True:
        done = invoke("policyd", "logs", "show", decision_id, "--json", "--database-url", url)
        if done.returncode == 0:
            return dict(json.loads(done.stdout))
        assert time.monotonic() < until, done.stderr
        time.sleep(0.05)


def logged_with_outcome(url: str, decision_id: str) -> dict[str, Any]:
    """The same entry, once it has an outcome, which may be shipped after its decision."""
    until = time.monotonic() + 60
    while (found := logged(url, decision_id))["ending"] is None:
        assert time.monotonic() < until, found
        time.sleep(0.1)
    return found


def invoke(
    *command: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as processes.run() does, without a process.

    An exception that no command handles is raised. A server is not for this, unless it is to reject
    its settings.
    """
    program, *words = command
    wanted = environment(env)
    variables = dict.fromkeys(os.environ.keys() - wanted.keys()) | wanted
    umask = os.umask(0o022)
    try:
        done = CliRunner().invoke(_COMMANDS[program], words, stdin, variables, prog_name=program)
    finally:
        os.umask(umask)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(
        command, done.exit_code, done.stdout_bytes, done.stderr_bytes
    )
