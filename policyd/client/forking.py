"""What becomes of the clients of policyd when a process forks.

gRPC works with threads of its own. A child has none of them, but the state that they left behind,
so gRPC hangs there, or ends the process. gRPC's own support for forking does not reach its
asyncio part, which the clients use. Therefore no channel lives through a fork: before one, every
SyncPolicyClient closes its channel, and parent and child each open a new one at their next call. A
PolicyClient belongs to an event loop, which cannot be stopped from outside. If one holds a channel
as its process forks, every client in the child raises NoDecision with the reason, and calls nothing
of gRPC. A client over HTTP keeps the same rules, as its connections and its event loop are its
parent's, too.

Two dangers are beyond the clients' reach. The child must not go on with an event loop of its
parent: the calls that wait in it would go on, too. And gRPC has fork handlers of its own. At times,
mostly while a call is under way, they find its threads idle and start new ones in the child, which
may end it by SIGSEGV or SIGABRT. GRPC_ENABLE_FORK_SUPPORT=0 in the environment switches them off;
then no other part of the process may use gRPC. Closing the client before the fork is always safe.
"""

import ctypes
import gc
import os
import threading
import time
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from policyd.errors import NoDecision

INHERITED = (
    "this process was forked from one in which a client of policyd had connections open, which do "
    "not survive that: fork first, or close the client before"
)


_TASKS = Path("/proc/self/task")
"""The threads of this process, on Linux."""
_THREADS = ("event_engine", "grpc_", "lifeguard", "timer_", "resolver-", "default-exec")
"""The beginnings of the names of gRPC's threads."""
_THREADS_TIME = 5.0
"""Seconds that a fork waits for gRPC's threads at most."""


class Suspendable(Protocol):
    """A client that can close its channel for a fork."""

    def suspend(self) -> bool:
        """Close the channel, and let no thread open another one. Returns whether that worked."""

    def resume(self) -> None:
        """Let threads open a channel again."""

    def renew(self) -> None:
        """Start afresh, in the child."""


clients: WeakSet[Suspendable] = WeakSet()
"""The clients of this process that a fork suspends."""
in_use: WeakSet[object] = WeakSet()
"""The asyncio clients that have a channel or a task in this process."""


class _State(threading.local):
    """The state of a thread that forks."""

    suspended: tuple[Suspendable, ...] = ()


_state = _State()
_is_broken = False
_has_threads = False
"""Whether a client has had a channel since the last fork, so that threads of gRPC may be left."""


def is_broken() -> bool:
    """Whether gRPC cannot be used in this process, as a channel was open when it was forked."""
    return _is_broken


def use(client: object) -> None:
    """Note that an asyncio client has a channel or a task, until in_use.discard(client)."""
    global _has_threads  # noqa: PLW0603  # It is the process's.
    _has_threads = True
    in_use.add(client)


def check() -> None:
    """Raises NoDecision where is_broken()."""
    if _is_broken:
        raise NoDecision(INHERITED)


def _before() -> None:
    global _has_threads  # noqa: PLW0603  # It is the process's.
    for client in tuple(clients):
        if client.suspend():
            # Noted one by one, so that none stays locked where a signal's handler raises.
            _state.suspended = (*_state.suspended, client)
    if _has_threads and not in_use:
        # gRPC stops its threads once no object of a channel is left, circular references included.
        # That takes most of a second, whether the client is closed here or just before.
        gc.collect()
        _wait_for_threads()
        _has_threads = False


def _wait_for_threads() -> None:
    """Wait until gRPC's threads are gone: a lock that one of them holds would stay locked in the
    child. Threads of another user of gRPC in this process do not end, so the wait has a bound."""
    until = time.monotonic() + _THREADS_TIME
    while time.monotonic() < until and any(map(_is_grpcs, _TASKS.glob("*/comm"))):
        time.sleep(0.001)


def _is_grpcs(comm: Path) -> bool:
    try:
        return comm.read_text().startswith(_THREADS)
    except OSError:  # The thread has ended.
        return False


def _in_parent() -> None:
    for client in _state.suspended:
        client.resume()
    _state.suspended = ()


def _in_child() -> None:
    global _is_broken  # noqa: PLW0603  # It is the process's.
    _is_broken = _is_broken or bool(in_use)
    for client in tuple(in_use):
        # No destructor of its channel may run, not even at the end of the child: it would wait for
        # threads that only the parent has. An extra reference keeps it for ever.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
    _state.suspended = ()
    for client in tuple(clients):
        client.renew()


if hasattr(os, "register_at_fork"):  # Windows does not fork.
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
