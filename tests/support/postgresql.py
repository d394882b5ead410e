"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, on a socket only."""

import atexit
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from tests.support.requirements import beyond_pip, missing

_DEBIAN = Path("/usr/lib/postgresql")


class PostgreSQL:
    """A PostgreSQL, started with the newest of Debian's packages that is installed."""

    def __init__(self, *settings: str) -> None:
        self._settings = settings
        """Such as "max_connections=10"."""
        self._numbers = itertools.count()
        # PostgreSQL refuses to run as root; Debian's package creates a user for it.
        self._user = "postgres" if os.getuid() == 0 else None

    def __enter__(self) -> Self:
        programs = _programs()
        self._folder = _make_folder(self._user)
        self._data = str(self._folder / "data")
        self._run(Path("/bin/cp"), "-a", str(_cluster(self._user)), self._data)
        self._pg_ctl = programs / "pg_ctl"
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it again after stop()."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        options += "".join(f" -c {setting}" for setting in self._settings)
        log = str(self._folder / "log")
        self._run(self._pg_ctl, "start", "--wait", "-D", self._data, "-l", log, "-o", options)

    def stop(self) -> None:
        """Stop it, without waiting for clients; the databases stay."""
        self._run(self._pg_ctl, "stop", "--wait", "-m", "fast", "-D", self._data)

    @property
    def socket(self) -> Path:
        """The folder of its socket."""
        return self._folder / ".s.PGSQL.5432"

    def freeze(self) -> None:
        """Stop every process of it where it stands; the kernel still acknowledges for them."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let its processes go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        first = int(Path(self._data, "postmaster.pid").read_text().split()[0])
        # The first one first, so that no more of them begin. The list may lack some while others
        # end.
        os.kill(first, number)
        told: set[int] = set()
        for _ in range(20):
            children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
            for process in {*map(int, children)} - told:
                told.add(process)
                with suppress(ProcessLookupError):
                    os.kill(process, number)
            time.sleep(0.005)

    def keep(self) -> None:
        """Keep its present state for go_back(): what a replica had when its primary was lost."""
        self.stop()
        self._run(Path("/bin/cp"), "-a", self._data, f"{self._data}.kept")
        self.start()

    def go_back(self) -> None:
        """Go on from the kept state: every later commit is lost."""
        self.stop()
        shutil.rmtree(self._data)
        self._run(Path("/bin/cp"), "-a", f"{self._data}.kept", self._data)
        self.start()

    @contextmanager
    def standby(self) -> Iterator[None]:
        """Run it as a standby meanwhile, of a primary that sends nothing."""
        signal = f"{self._data}/standby.signal"
        self.stop()
        self._run(Path("/bin/touch"), signal)
        self.start()
        yield
        self.stop()
        self._run(Path("/bin/rm"), signal)
        self.start()

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database."""
        name = f"test{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}")
        try:
            yield f"postgresql+psycopg://postgres@/{name}?host={self._folder}"
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            host=str(self._folder), user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    def _run(self, program: Path, *arguments: str) -> None:
        _run(self._user, self._folder, program, *arguments)


def _run(user: str | None, folder: Path, program: Path, *arguments: str) -> None:
    """Run the program in `folder`, as `user` where one is given."""
    done = subprocess.run(
        [program, *arguments],
        user=user,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout.decode()


def _make_folder(user: str | None) -> Path:
    """A new folder of that user's."""
    folder = Path(tempfile.mkdtemp(prefix="policyd-postgresql-"))
    if user:
        owner = pwd.getpwnam(user)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    return folder


@cache
def _cluster(user: str | None) -> Path:
    """The files of a new cluster, which others copy: to make them takes seconds."""
    folder = _make_folder(user)
    atexit.register(shutil.rmtree, folder)
    flags = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8")
    _run(
        user, folder, _programs() / "initdb", "--pgdata", str(folder / "data"), "--no-sync", *flags
    )
    return folder / "data"


def _programs() -> Path:
    beyond_pip("PostgreSQL")
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        missing("PostgreSQL is missing (Debian: apt-get install postgresql)")
    return found[-1].parent
