"""What the tests share."""

import faulthandler
import gc
import math
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import ports, requirements, tiers
from tests.support.databases import migrated
from tests.support.envoy_checks import Checker
from tests.support.load import MODE, WAITS, MakeStack, Stack, keys
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd, Program, end_programs
from tests.support.stack import Background, Gateway, Upstream

# A busy machine makes no test fail.
hypothesis.settings.register_profile("policyd", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=16)
hypothesis.settings.load_profile("policyd")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for two cores, as quick tests wait for a while; four, as long tests wait for
    as long as they compute."""
    each = 1.5 if config.option.markexpr == tiers.QUICK else 2
    return math.ceil((os.cpu_count() or 1) * each)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what has no test of the tier that runs."""
    return tiers.is_left_out(collection_path, config.option.markexpr) or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collecting garbage, of which they make none. What is there afterwards
    stays, so that no pass of the collector walks through it again: that took a tenth of the time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each test into its tier, and the long ones first."""
    tiers.mark(items)
    tiers.put_long_ones_first(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check that a quick test needs no program from outside pip."""
    requirements.only_pip(item.get_closest_marker("quick") is not None)


def pytest_unconfigure() -> None:
    """Show the programs that a failed test has left running, and do not wait for them."""
    end_programs()
    faulthandler.dump_traceback_later(60, exit=True)


@pytest.fixture(scope="session")
def policyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    """A running policyd with a database of its own, which answers HTTP too."""
    server = Policyd(migrated(tmp_path_factory.mktemp("policyd")), "--http", "127.0.0.1:0")
    yield server
    assert server.stop() == 0, server.errors
    assert "Traceback" not in "".join(server.errors)


@pytest.fixture(scope="session")
def checker(policyd: Policyd) -> Iterator[Checker]:
    """A caller that asks policyd as Envoy does."""
    asking = Checker(policyd.grpc)
    yield asking
    asking.close()


@pytest.fixture(scope="session")
def enforcing(policyd: Policyd) -> str:
    """An API key that enforces user IDs."""
    return policyd.create_key("enforce")


@pytest.fixture(scope="session")
def off(policyd: Policyd) -> str:
    """An API key that does not enforce user IDs."""
    return policyd.create_key("off")


@pytest.fixture(scope="session")
def audited(policyd: Policyd) -> str:
    """An API key that only flags."""
    return policyd.create_key("audit")


@pytest.fixture(scope="session")
def locked(policyd: Policyd) -> str:
    """An API key that enforces user IDs, whatever the headers say."""
    return policyd.create_key("enforce", override="locked")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL, started with Debian's programs."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/policyd.db"
        return
    with request.getfixturevalue("postgresql").database() as url:
        yield url


@pytest.fixture
def unused_port() -> Callable[[], int]:
    """Gives a port of this machine at which nothing listens."""
    return ports.unused_port


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    with Background() as loop:
        yield loop


@pytest.fixture
def upstream(background: Background) -> Iterator[Upstream]:
    with Upstream(background) as running:
        yield running


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts programs, and ends them with the test in whatever state it leaves them."""
    programs: list[Program] = []

    def begin(program: type[Program], *arguments: Any, **options: Any) -> Program:
        programs.append(program(*arguments, **options))
        return programs[-1]

    yield begin
    for program in reversed(programs):
        program.send(signal.SIGCONT)
        program.stop(signal.SIGKILL)


@pytest.fixture
def make_stack(tmp_path: Path, upstream: Upstream, start: Callable[..., Any]) -> MakeStack:
    def make(*flags: str, policy_timeout: str = WAITS, database_url: str | None = None) -> Stack:
        url = database_url or f"sqlite:///{tmp_path}/policyd.db"
        # Before policyd starts, so that every worker knows it from the beginning.
        key = keys(url, "create", "test", *MODE, "enforce")["key"]
        policyd = start(Policyd, tmp_path, *flags, database_url=url)
        gateway = start(Gateway, policyd.grpc, upstream.url, "--policy-timeout", policy_timeout)
        return Stack(policyd, gateway, upstream, key, start)

    return make
