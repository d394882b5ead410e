"""How a process of policyd or the gateway begins: its event loop, its environment, and what it
tells its children of its log."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

_COLLECT = 5_000
"""Objects, made and not ended, after which the garbage collector looks for circles among them."""
TEXT, JSON = "text", "json"
"""The formats of a log. The handler that writes it has its format's name."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end, on uvloop where that exists: a call costs a tenth less on it."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main)


def settle() -> None:
    """Note that what this process holds now stays until it ends: modules, for the most part, and
    the different settings of keys. The garbage collector would go through all of that again and
    again, and hold up the event loop for up to a tenth of a second each time. Of what comes after,
    nearly all ends with its request, without the collector, so that looks once in a while for the
    rest: with 64 requests at once, looks after each 700 objects took a thirteenth of the CPU."""
    gc.freeze()
    gc.set_threshold(_COLLECT)


def fork_without_grpc() -> None:
    """Have gRPC, before it is loaded, not support forks: it would log a complaint for each child
    that a server starts, and those are programs of their own."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def silence_grpc() -> None:
    """Have gRPC, before it is loaded, log nothing of its own: a command says what went wrong."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def log_arguments() -> tuple[str, str]:
    """Level and format of this process's log, as its children are told them."""
    root = logging.getLogger()
    is_json = any(handler.name == JSON for handler in root.handlers)
    return logging.getLevelName(root.level).lower(), JSON if is_json else TEXT
