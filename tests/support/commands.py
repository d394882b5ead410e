"""The command `policyd` in the tests' own process: an interpreter of its own costs a second."""

import os
import subprocess
from collections.abc import Mapping

from click.testing import CliRunner

from policyd.cli.main import main
from tests.support.processes import environment


def invoke(
    *command: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """As processes.run() does, without a process. What no command of policyd handles is raised."""
    program, *words = command
    assert program == "policyd"
    wanted = environment(env)
    variables = dict.fromkeys(os.environ.keys() - wanted.keys()) | wanted
    umask = os.umask(0o022)
    try:
        done = CliRunner().invoke(main, words, stdin, variables, prog_name=program)
    finally:
        os.umask(umask)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(
        command, done.exit_code, done.stdout_bytes, done.stderr_bytes
    )
