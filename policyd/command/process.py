"""How a process of policyd or the gateway begins: its log, its event loop, its environment."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end, on uvloop where that exists: a call costs a tenth less on it."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main)


def fork_without_grpc() -> None:
    """Have gRPC, before it is loaded, not support forks: it would log a complaint for each child
    that a server starts, and those are programs of their own."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def silence_grpc() -> None:
    """Have gRPC, before it is loaded, log nothing of its own: a command says what went wrong."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def start_logging(level: str) -> None:
    """Log to stderr."""
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=line)
    for noisy in ("alembic", "grpc", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # They report every start.
