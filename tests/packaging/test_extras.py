"""The wheel with each extra alone: what works with it, and what is said where one is missing."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import grpc
import pytest

from policyd.build_info import commit
from policyd.v1.policy_pb2 import EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.packaging.environments import attempt, install, run
from tests.support.processes import Policyd, Program

EXTRAS = ("", "server", "gateway", "postgresql", "tracing")
POSTGRESQL = "postgresql+psycopg://policyd@127.0.0.1:1/policyd"
NEEDS = [
    # The extra that is installed alone, a command, and the extra that it lacks.
    *((extra, ("policyd", "--version"), "server") for extra in ("", "postgresql", "tracing")),
    *((extra, ("policyd-gateway", "serve"), "gateway") for extra in ("", "postgresql", "tracing")),
    ("gateway", ("policyd", "serve"), "server"),
    ("gateway", ("policyd", "keys", "list"), "server"),
    ("gateway", ("policyd", "demo"), "server"),
    ("server", ("policyd-gateway", "serve"), "gateway"),
    ("server", ("policyd", "demo"), "gateway"),
    ("server", ("policyd", "serve", "--database-url", POSTGRESQL), "postgresql"),
    ("server", ("policyd", "keys", "list", "--database-url", POSTGRESQL), "postgresql"),
    ("server", ("policyd", "serve", "--traces", "http://127.0.0.1:4318"), "tracing"),
    ("gateway", ("policyd-gateway", "serve", "--traces", "http://127.0.0.1:4318"), "tracing"),
]

Programs = Callable[[str], Path]


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The folder of programs of an environment that holds the wheel with one extra, or none."""

    @cache
    def of(extra: str) -> Path:
        return install(wheel, tmp_path_factory.mktemp("environment"), [extra] if extra else [])

    return of


@pytest.mark.parametrize(("extra", "command", "lacks"), NEEDS)
def test_a_missing_extra(
    programs: Programs, tmp_path: Path, extra: str, command: tuple[str, ...], lacks: str
) -> None:
    """A command that lacks an extra ends in one sentence that says how to install it."""
    done = attempt(programs(extra) / command[0], *command[1:], cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if "not installed" in line]
    assert line.endswith(f"pip install 'policyd[{lacks}]'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("extra", "command"), [("server", "policyd"), ("gateway", "policyd-gateway")]
)
def test_the_version(programs: Programs, tmp_path: Path, extra: str, command: str) -> None:
    """--version of an installed wheel names the commit that it was built from."""
    said = run(programs(extra) / command, "--version", cwd=tmp_path)
    assert said.startswith(f"{command}, version ")
    assert said.endswith(f", commit {commit()}\n")


def test_both_servers_run(programs: Programs, tmp_path: Path) -> None:
    """Each server runs from its own extra alone, with its console and metrics, and says version and
    commit as it is ready."""
    built = f"commit={commit()}"
    metrics = ("--metrics", "127.0.0.1:0", "--log-format", "json")
    every = ("--console", "127.0.0.1:0", "--http", "127.0.0.1:0", *metrics)
    policyd = Policyd(tmp_path, *every, command=str(programs("server") / "policyd"), cwd=tmp_path)
    gateway = Program(
        *(str(programs("gateway") / "policyd-gateway"), "serve", "--listen", "127.0.0.1:0"),
        *("--policyd", policyd.grpc, "--drain", "0", *metrics),
        ready=r"policyd-gateway is ready: (\S+)",
        cwd=tmp_path,
    )
    with grpc.insecure_channel(policyd.grpc) as channel:
        answer = PolicyServiceStub(channel).Evaluate(EvaluateRequest(has_user=True), timeout=30)
    assert answer.decision_id
    for server in (gateway, policyd):
        assert server.stop() == 0
        assert any("is ready" in line and built in line for line in server.output)
