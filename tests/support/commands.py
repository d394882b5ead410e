"""Our commands in the tests' own process: an interpreter of its own costs a second."""

import os
import subprocess
from collections.abc import Mapping

from click.testing import CliRunner

from gateway.cli import main as policyd_gateway
from policyd.cli.main import main as policyd
from tests.support.processes import environment

_COMMANDS = {"policyd": policyd, "policyd-gateway": policyd_gateway}


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
