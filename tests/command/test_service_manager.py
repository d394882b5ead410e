"""What a service manager hears of policyd and its gateway."""

import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policyd.command import service_manager
from tests.support.processes import Policyd, Program

pytestmark = pytest.mark.slow


class Manager:
    """The socket that systemd listens at."""

    def __init__(self, path: str) -> None:
        self.variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self._heard: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self.alive = 0
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()

    def _listen(self) -> None:
        while datagram := self._socket.recv(4096):
            message = dict(line.split("=", 1) for line in datagram.decode().splitlines())
            if "WATCHDOG" in message:
                self.alive += 1
            else:
                self._heard.put(message)

    def hear(self) -> dict[str, str]:
        """The next message that is no sign of life."""
        return self._heard.get(timeout=60)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._listening.join()
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    made = Manager(path if request.param == "path" else "@" + path)
    yield made
    made.close()


def _policyd(folder: Path, variables: dict[str, str]) -> Program:
    return Policyd(folder, env=variables)


def _gateway(folder: Path, variables: dict[str, str]) -> Program:
    listen = ("--listen", "127.0.0.1:0", "--drain", "0")
    return Program("policyd-gateway", "serve", *listen, ready="is ready", env=variables, cwd=folder)


@pytest.mark.parametrize("start", [_policyd, _gateway], ids=["policyd", "gateway"])
def test_a_servers_life(
    manager: Manager, tmp_path: Path, start: Callable[[Path, dict[str, str]], Program]
) -> None:
    """A server notifies the manager that it is ready, lives, follows SIGHUP, and ends."""
    server = start(tmp_path, manager.variables)
    assert manager.hear()["READY"] == "1"
    server.send(signal.SIGHUP)
    message = manager.hear()
    assert message["RELOADING"] == "1"
    assert int(message["MONOTONIC_USEC"]) > 0
    assert manager.hear()["READY"] == "1"
    assert manager.alive
    server.send(signal.SIGTERM)
    assert manager.hear()["STOPPING"] == "1"
    assert server.wait() == 0


def test_without_a_service_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A socket that is not there, or no socket at all, holds nothing up."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service_manager.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    service_manager.stopping()
