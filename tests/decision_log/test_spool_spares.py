"""Descriptors in reserve: lent where a process has no other left, and for nothing else."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from policyd.decision_log.spool.spares import Spares
from policyd.decision_log.spool.system import System

NO_FILES = (errno.EMFILE, errno.ENFILE)
RESERVE = 4


class Process(System):
    """A process that may hold so many descriptors; it holds those that it has duplicated."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: set[int] = set()

    def dup(self, descriptor: int) -> int:
        if len(self.held) >= self.most:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.held.add(copy := os.dup(descriptor))
        return copy

    def close(self, descriptor: int) -> None:
        self.held.remove(descriptor)
        os.close(descriptor)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def failing(number: int, times: int) -> Callable[[], str]:
    """Work that fails so many times."""
    errors = [OSError(number, os.strerror(number))] * times

    def work() -> str:
        if errors:
            raise errors.pop()
        return "done"

    return work


@pytest.mark.parametrize("number", NO_FILES, ids=errno.errorcode.get)
def test_a_spare_is_lent(folder: int, number: int) -> None:
    """Work that finds no descriptor gets one of the reserve, which is then filled again."""
    process = Process(10)
    with closing(Spares(folder, process)) as spares:
        assert len(process.held) == RESERVE

        def work() -> int:
            if len(process.held) == RESERVE:
                raise OSError(number, os.strerror(number))
            return len(process.held)

        for _ in range(3):
            assert spares.lend(work) == RESERVE - 1
            assert len(process.held) == RESERVE
    assert not process.held


@pytest.mark.parametrize(
    ("number", "times"),
    [(errno.EMFILE, 2), (errno.ENFILE, 2), (errno.ENOSPC, 1), (errno.EIO, 1)],
)
def test_work_that_fails(folder: int, number: int, times: int) -> None:
    """Work is tried once more only with a spare, and what it lacked a second time is an error. The
    reserve is full again after either."""
    process = Process(10)
    with closing(Spares(folder, process)) as spares:
        work = failing(number, times)
        with pytest.raises(OSError, match=os.strerror(number)):
            spares.lend(work)
        assert work() == "done", "it was tried so many times"
        assert len(process.held) == RESERVE


@pytest.mark.parametrize("most", range(RESERVE + 1))
def test_a_reserve_that_is_not_full(folder: int, most: int) -> None:
    """The reserve is as large as it can be, and is filled once there are descriptors again."""
    process = Process(most)
    with closing(Spares(folder, process)) as spares:
        assert len(process.held) == most
        work = failing(errno.EMFILE, 1)
        if most:
            assert spares.lend(work) == "done"
        else:
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                spares.lend(work)
        process.most = RESERVE + 1
        assert spares.lend(work) == "done"
        assert len(process.held) == RESERVE
    assert not process.held
