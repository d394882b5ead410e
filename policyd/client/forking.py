"""What becomes of the clients of policyd where a process forks.

gRPC works with threads of its own. A child has none of them, yet the state that they left behind,
so using gRPC there hangs or ends the process. gRPC's own support for forking does not reach its
asyncio part, which the clients use. Therefore no channel lives through a fork: before one, every
SyncPolicyClient puts its channel away, and parent and child each make a new one when they next
ask. A PolicyClient belongs to an event loop, which nothing can stop from outside: a child of a
process in which one holds a channel asks nothing at all, and says why, instead of hanging.
"""

import gc
import os
import threading
from typing import Protocol
from weakref import WeakSet

from policyd.errors import NoDecision

INHERITED = (
    "this process was forked from one in which a client of policyd had a channel open, and gRPC "
    "does not survive that: fork first, or close the client before"
)


class Suspendable(Protocol):
    """A client that can put its channel away."""

    def suspend(self) -> bool:
        """Put the channel away and keep others from making one. Returns whether that worked."""

    def resume(self) -> None:
        """Let them again."""

    def renew(self) -> None:
        """Begin anew, in a child."""


clients: WeakSet[Suspendable] = WeakSet()
"""Those of this process."""
in_use: WeakSet[object] = WeakSet()
"""Clients with a channel or a task in this process."""


class _State(threading.local):
    """Of a thread that forks."""

    suspended: tuple[Suspendable, ...] = ()


_state = _State()
_is_broken = False


def is_broken() -> bool:
    """Whether gRPC cannot be used in this process, as it was forked too late."""
    return _is_broken


def check() -> None:
    """Raises NoDecision where is_broken()."""
    if _is_broken:
        raise NoDecision(INHERITED)


def _before() -> None:
    were_in_use = bool(in_use)
    for client in tuple(clients):
        if client.suspend():
            # One by one, lest a signal's exception leave those before it locked.
            _state.suspended = (*_state.suspended, client)
    if were_in_use:
        # gRPC stops its threads once nothing of a channel is left, references in circles included.
        gc.collect()


def _in_parent() -> None:
    for client in _state.suspended:
        client.resume()
    _state.suspended = ()


def _in_child() -> None:
    global _is_broken  # noqa: PLW0603  # It is the process's.
    _is_broken = _is_broken or bool(in_use)
    _state.suspended = ()
    for client in tuple(clients):
        client.renew()


if hasattr(os, "register_at_fork"):  # Windows does not fork.
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
