"""A start of the console that fails half-way ends what it had begun."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from policyd.asgi.listener import Listener
from policyd.command.address import Address, open_socket
from policyd.console import ConsoleServer
from policyd.errors import SettingsError
from tests.support.consoles import KeptDatabase


async def _fail(_: Listener, listening: socket.socket) -> None:
    raise SettingsError(f"nothing listens on {listening.getsockname()}")


@pytest.mark.parametrize("what", ["certificate", "listener"])
async def test_its_port_is_free(
    what: str,
    kept: KeptDatabase,
    unused_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A console that could not start no longer listens."""
    address = Address("127.0.0.1", unused_port())
    settings = replace(kept.settings, console=address)
    if what == "certificate":
        settings = replace(settings, tls_cert=Path("no-such.pem"), tls_key=Path("no-such.pem"))
    else:
        monkeypatch.setattr(Listener, "start", _fail)
    # The error keeps the frames that it has passed, and what these refer to.
    with pytest.raises(SettingsError) as failed:
        await ConsoleServer(settings, kept.store).__aenter__()
    open_socket(address).close()
    del failed
