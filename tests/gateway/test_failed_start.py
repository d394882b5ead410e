"""A start that fails half-way ends what it had begun."""

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.server import Server
from gateway.settings import Settings
from policyd.asgi.listener import Listener
from policyd.command.address import Address, open_socket
from policyd.errors import SettingsError

NOWHERE = Path("no-such-file.pem")
BROKEN: dict[str, dict[str, Any]] = {
    "certificate": {"tls_cert": NOWHERE, "tls_key": NOWHERE},
    "policyd": {"policyd_tls": True, "policyd_ca": NOWHERE},
    "listener": {},
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_was_begun_is_ended(
    what: str, unused_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No socket, task or thread is left of a gateway that could not start, and its port is free."""
    if what == "listener":
        monkeypatch.setattr(Listener, "start", _fail)
    address = Address("127.0.0.1", unused_port())
    settings = Settings(listen=address, traces="http://127.0.0.1:9", **BROKEN[what])
    tasks = asyncio.all_tasks()
    # The error keeps the frames that it has passed, and what these refer to.
    with pytest.raises(SettingsError) as failed:
        await Server(settings).__aenter__()
    open_socket(address).close()
    del failed
    assert asyncio.all_tasks() == tasks
    assert not [one for one in threading.enumerate() if one.name == "traces"]


async def _fail(_: Listener, listening: socket.socket, *, shared: bool) -> None:
    raise SettingsError(f"nothing listens on {listening.getsockname()}, shared or not: {shared}")
