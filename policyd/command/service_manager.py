"""What systemd is told about a server that it runs as `Type=notify`: sd_notify's protocol, which is
a datagram of NAME=VALUE lines to the socket that NOTIFY_SOCKET names.

Elsewhere the variable is not set, and nothing is told. A service manager that does not listen holds
little up: what it does not take within _PATIENCE, and a sign of life that it does not take at once,
is dropped.
"""

import asyncio
import logging
import os
import socket
import time

_log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds that a change of state waits for room in the service manager's queue."""
_OFTEN = 2
"""Signs of life in the time for which systemd waits for one."""


def ready() -> None:
    """Tell it that the server is up, or has followed SIGHUP."""
    _tell("READY=1", "STATUS=ready")


def reloading() -> None:
    """Tell it that SIGHUP is being followed, until ready() is called."""
    _tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=replacing")


def stopping() -> None:
    """Tell it that the server is ending in order."""
    _tell("STOPPING=1", "STATUS=stopping")


async def keep_telling() -> None:
    """Give the signs of life that `WatchdogSec=` asks for, until cancelled: a supervisor whose
    event loop stands still gives none, and is started again."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    is_for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not (microseconds.isdecimal() and int(microseconds) and is_for_us):
        return
    while True:
        _tell("WATCHDOG=1", patience=0)
        await asyncio.sleep(int(microseconds) / 1e6 / _OFTEN)


def _tell(*lines: str, patience: float = _PATIENCE) -> None:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    # An abstract name begins with a zero byte, in whose place stands @.
    address = "\0" + path[1:] if path[0] == "@" else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
            telling.settimeout(patience)
            telling.sendto("\n".join(lines).encode(), address)
    except OSError as problem:
        _log.debug("the service manager cannot be told %s: %s", lines[0], problem)
