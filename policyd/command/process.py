"""How a process of policyd or the gateway begins: its event loop, its garbage collector, its
environment, and the log's settings for its children."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

_COLLECT = 5_000
"""Objects, made and not freed, after which the garbage collector looks for cycles among them."""
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
    """Keep the garbage collector from what this process holds now, as that stays until it ends:
    modules, for the most part, and the different settings of keys. The collector would go through
    all of that again and again, and hold up the event loop for up to a tenth of a second each time.
    Nearly all that is made later is freed with its request, without the collector, which looks only
    now and then for the rest: with 64 requests at once, looking after every 700 objects took a
    thirteenth of the CPU."""
    gc.freeze()
    gc.set_threshold(_COLLECT)


def fork_without_grpc() -> None:
    """Switch off gRPC's support for forks, before gRPC is loaded: it would log a complaint for each
    child that a server starts, though these are programs of their own."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def silence_grpc() -> None:
    """Keep gRPC, before it is loaded, from logging: the command itself says what went wrong."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def log_arguments() -> tuple[str, str]:
    """The level and format of this process's log, as arguments for its children."""
    root = logging.getLogger()
    is_json = any(handler.name == JSON for handler in root.handlers)
    return logging.getLevelName(root.level).lower(), JSON if is_json else TEXT
