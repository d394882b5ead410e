"""Writers, a shipper, retention and restored databases, ended between any two system calls.

Files, locks, SQLite and all of policyd's own code are real. The test decides when a process is
killed, when a call fails, and when another process comes between two calls. POLICYD_TEST_EXAMPLES
sets how many sequences are tried.
"""

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from policyd.decision_log import shipper as shipping
from policyd.decision_log import spool
from policyd.decision_log.record import Record
from policyd.decision_log.shipper import Shipper
from policyd.decision_log.spool import SpoolReader, SpoolWriter
from policyd.decision_log.spool import writer as writing
from policyd.decision_log.spool.system import System
from policyd.decision_log.writer import DecisionLog
from policyd.errors import LogFull, SettingsError
from policyd.store import LogFilter, Store
from policyd.store.destination import StoreDestination
from tests.support import examples
from tests.support.records import START, denied, record

EXAMPLES = int(os.environ.get("POLICYD_TEST_EXAMPLES", examples.times(0.6)))
LIMIT = 3000
"""Bytes: about ten records."""
FAULTS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EMFILE": errno.EMFILE}
FALLIBLE = ("open", "dup", "listdir", "write", "pwrite", "pread", "ftruncate", "unlink", "fsync")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # a disk that is quick


class Killed(BaseException):
    """The process is gone."""


class Process(System):
    """A process's view of the kernel. A planned event happens at one of its calls."""

    def __init__(self) -> None:
        self.files: set[int] = set()
        self.is_dead = False
        self.fails_with = 0
        self._left = -1
        self._event: Callable[[], None] = lambda: None

    def plan(self, calls: int, event: Callable[[], None]) -> None:
        """Have this happen after so many calls, before the next one."""
        self._left, self._event = calls, event

    def end(self) -> None:
        """Do what the kernel does when a process ends: close its files, which frees its locks."""
        self.is_dead = True
        for descriptor in self.files:
            os.close(descriptor)
        self.files.clear()

    def tick(self, *_: object) -> None:
        """Count the beginning of a call."""
        if self.is_dead:
            raise Killed  # Code that would tidy up does not run after a kill.
        self._left -= 1
        if self._left == -1:
            self._event()
        if self.is_dead:
            raise Killed

    def __getattribute__(self, name: str) -> Any:
        call = super().__getattribute__(name)
        if name not in vars(System) or name.startswith("_"):
            return call
        return lambda *given, **named: self._do(name, call, given, named)

    def _do(self, name: str, call: Callable[..., Any], given: Any, named: Any) -> Any:
        was_dead = self.is_dead
        try:
            self.tick()
            if self.fails_with and name in FALLIBLE:
                number, self.fails_with = self.fails_with, 0
                raise OSError(number, os.strerror(number))
        except (Killed, OSError):
            if name == "write" and not was_dead:  # The kernel may have taken a part of the bytes.
                os.write(given[0], given[1][: len(given[1]) // 2])
            raise
        found = call(*given, **named)
        if name in ("open", "dup"):
            self.files.add(found)
        elif name == "close":
            self.files.discard(given[0])
        return found


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with closing(Store(f"sqlite:///{folder}/policyd.db")) as store:
            store.migrate()
        return Path(folder, "policyd.db").read_bytes()


class Writer:
    """A worker's decision log."""

    def __init__(self, folder: Path, name: str, process: Process, drops: bool) -> None:
        self.name = name
        self.process = process
        self.spool = SpoolWriter(folder, name, LIMIT, system=process)
        self.log = DecisionLog(self.spool, name, drop_when_full=drops, drop_on_error=drops)


plans = st.none() | st.tuples(
    st.integers(0, 14), st.sampled_from(["kill", "ship", "ship and kill", *FAULTS])
)
ship_plans = st.none() | st.tuples(
    st.integers(0, 60),
    st.sampled_from(["kill", "write", "write and stop", "write and kill", "EIO"]),
)


class Spool(RuleBasedStateMachine):
    """The rules are the actions of processes, and the invariants must hold after each."""

    @initialize(looks=st.booleans(), drops=st.booleans())
    def begin(self, looks: bool, drops: bool) -> None:
        self.place = Path(tempfile.mkdtemp(dir=MEMORY))
        self.folder = self.place / "spool"
        self.database = self.place / "policyd.db"
        self.database.write_bytes(_migrated())
        spool.prepare(self.folder, "database")
        self.before = (writing._LOOK, shipping._CHUNK)
        writing._LOOK = 0.0 if looks else 3600.0
        shipping._CHUNK = 700
        self.drops = drops
        self.most_writers = 3 if looks else 1
        self.writers: list[Writer] = []
        # A writer that cannot look at the folder counts what it has written itself.
        self.bound = LIMIT
        self.names = 0
        self.shipper: tuple[Process, Store, Shipper] | None = None
        self.reading = Store(f"sqlite:///{self.database}")
        self.answered: set[str] = set()
        self.tried: set[str] = set()
        self.logged: set[str] = set()
        self.retired: set[str] = set()
        self.lost: dict[str, list[int]] = {}
        self.unreadable = [0, 0]
        self.copy: tuple[set[str], set[str], dict[str, int]] | None = None

    # The actions of processes.

    @precondition(lambda self: len(self.writers) < self.most_writers)
    @rule(plan=plans)
    def start(self, plan: Any) -> None:
        self.names += 1
        process, name = Process(), f"p{self.names}"
        self.lost[name] = [0, 0]
        with self._planned(process, plan):
            self.writers.append(Writer(self.folder, name, process, self.drops))

    @precondition(lambda self: self.writers)
    @rule(which=st.integers(0, 2), size=st.integers(1, 6), plan=plans)
    def write(self, which: int, size: int, plan: Any) -> None:
        self._write(self.writers[which % len(self.writers)], size, plan)

    def _write(self, writer: Writer, size: int, plan: Any) -> None:
        batch = [(denied if number % 2 else record)() for number in range(size)]
        ids = {one.id for one in batch}
        self.tried |= ids
        before = writer.spool.written
        self.lost[writer.name][1] += size
        with self._planned(writer.process, plan):
            try:
                try:
                    writer.log.append(batch)
                finally:
                    if writer.spool._is_blind:
                        self.bound = LIMIT * self.most_writers * 2
            except LogFull:
                self.lost[writer.name][1] -= size
                return
            if writer.spool.written > before:
                self.answered |= ids
                self.lost[writer.name][1] -= size

    @precondition(lambda self: self.writers)
    @rule(which=st.integers(0, 2))
    def write_nonsense(self, which: int) -> None:
        writer = self.writers[which % len(self.writers)]
        with suppress(LogFull):
            writer.spool.write(b'["D","nonsense"]\n')
            self.unreadable = [bound + 1 for bound in self.unreadable]

    @precondition(lambda self: self.writers)
    @rule(which=st.integers(0, 2), plan=plans)
    def stop(self, which: int, plan: Any) -> None:
        writer = self.writers.pop(which % len(self.writers))
        with self._planned(writer.process, plan):
            writer.log.flush()
            writer.spool.close()
        writer.process.end()

    @precondition(lambda self: self.writers)
    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        self.writers.pop(which % len(self.writers)).process.end()

    @rule(plan=ship_plans)
    def ship(self, plan: Any) -> None:
        process, _, shipper = self._shipper()
        with self._planned(process, plan), suppress(OSError):
            shipper.ship()

    @precondition(lambda self: self.shipper)
    @rule()
    def kill_shipper(self) -> None:
        assert self.shipper
        process, store, _ = self.shipper
        process.end()
        store.close()
        self.shipper = None

    @rule(kept=st.integers(0, 10))
    def retire(self, kept: int) -> None:
        self._see()
        # Each call takes a part.
        while self.reading.log.expire(START - timedelta(days=1), kept):
            pass
        self.retired = self.logged - self._present()

    @rule()
    def back_up(self) -> None:
        self._see()
        file = self.place / "copy.db"
        with closing(sqlite3.connect(self.database)) as live, closing(sqlite3.connect(file)) as to:
            live.backup(to)
        lost = self.reading.log.lost_by(self.lost)
        self.copy = (set(self.logged), set(self.retired), lost)

    @precondition(lambda self: self.copy)
    @rule()
    def put_back(self) -> None:
        """Restore a copy: what was shipped since, and is no longer in the spool, is lost."""
        assert self.copy
        file = self.place / "copy.db"
        with closing(sqlite3.connect(file)) as copy, closing(sqlite3.connect(self.database)) as to:
            copy.backup(to)
        logged, retired, lost = self.copy
        self.logged, self.retired = set(logged), set(retired)
        self.answered &= self.logged | self._spooled()
        for name, bounds in self.lost.items():
            bounds[0] = max(lost.get(name, 0), self._told(name))
        self.unreadable[0] = 0

    # The invariants.

    @invariant()
    def holds(self) -> None:
        """Every answered decision is in the log or the spool, and nothing comes back or counts
        twice.
        """
        present = self._present()
        assert not self.retired & present
        self.logged |= present
        assert self.answered <= self.logged | self._spooled()
        hours = self.reading.statistics.hours(START, START + timedelta(days=2))
        assert sum(counts.requests for _, counts in hours) == len(self.logged)
        held = sum(file.stat().st_size for file in self.folder.glob("*.jsonl"))
        assert held <= self.bound
        self.bound = LIMIT if held <= LIMIT else self.bound
        stored = self.reading.log.lost_by(self.lost)
        for name, bounds in self.lost.items():
            bounds[0] = max(bounds[0], self._told(name))
            assert bounds[0] <= max(stored.get(name, 0), self._told(name)) <= bounds[1]

    def teardown(self) -> None:
        if not hasattr(self, "place"):
            return
        try:
            for writer in self.writers:
                writer.process.end()
            if self.shipper:
                self.kill_shipper()
            self._ship_all()
        finally:
            self.reading.close()
            writing._LOOK, shipping._CHUNK = self.before
            shutil.rmtree(self.place)

    def _ship_all(self) -> None:
        """After a last round the spool is empty, and every answered decision is in the log."""
        for _ in range(2):
            _, _, shipper = self._shipper()
            shipper.ship()
        self.holds()
        assert self.answered <= self.logged <= self.tried
        assert not [*self.folder.glob("*.jsonl"), *self.folder.glob("*.lost")]
        assert self.reading.positions.read(shipper._spool.identity()) == {}
        lost = self.reading.log.status().lost
        least, most = (
            (sum(bounds) for bounds in zip(*self.lost.values(), strict=True))
            if (self.lost)
            else (0, 0)
        )
        assert least + self.unreadable[0] <= lost <= most + self.unreadable[1]
        self.kill_shipper()

    # Observations.

    def _shipper(self) -> tuple[Process, Store, Shipper]:
        if self.shipper is None:
            process = Process()
            store = Store(f"sqlite:///{self.database}")
            for name in ("before_cursor_execute", "commit"):
                sa.event.listen(store.log._engine, name, process.tick)
            self.shipper = (
                process,
                store,
                Shipper(StoreDestination(store), SpoolReader(self.folder, process)),
            )
        return self.shipper

    @contextmanager
    def _planned(self, process: Process, plan: Any) -> Iterator[None]:
        if plan is not None:
            calls, what = plan
            process.plan(calls, lambda: self._happen(process, what))
        try:
            yield
        except (Killed, SettingsError):
            process.end()
            self.writers = [one for one in self.writers if one.process is not process]
            if self.shipper and self.shipper[0] is process:
                self.kill_shipper()
        process.plan(-2, lambda: None)

    def _happen(self, process: Process, what: str) -> None:
        """Do the action that comes between two calls of the process."""
        if what in FAULTS:
            process.fails_with = FAULTS[what]
        if what.startswith("ship"):
            self.ship(None)
        if what.startswith("write") and self.writers:
            self._write(self.writers[0], 1, None)
            if what.endswith("stop"):
                self.stop(0, None)
            elif what.endswith("kill"):
                self.kill(0)
        elif what.endswith("kill"):
            process.is_dead = True

    def _see(self) -> None:
        self.logged |= self._present()

    def _present(self) -> set[str]:
        return {one.id for one in self.reading.log.page(LogFilter(), limit=5000)}

    def _spooled(self) -> set[str]:
        found = set()
        for file in self.folder.glob("*.jsonl"):
            for line in file.read_bytes().split(b"\n")[:-1]:
                with suppress(msgspec.MsgspecError):
                    found.add(msgspec.json.decode(line, type=Record).id)
        return found

    def _told(self, name: str) -> int:
        """The number of losses that a process has recorded in its files."""
        told = (file.read_text() for file in self.folder.glob(f"{name}-*.lost"))
        return max((int(digits or "0") for digits in told), default=0)


TestSpool = Spool.TestCase
TestSpool.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
