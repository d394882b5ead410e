"""A proxy that can fall silent: it acknowledges every byte, passes none on, and closes nothing."""

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

Target = Path | tuple[str, int]
"""A Unix socket, or a host and a port."""


class SilentProxy:
    """A proxy before `target`, at `host` and `port`, that passes bytes on until it is silent."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._speaking = threading.Event()
        self._speaking.set()
        self._held: list[socket.socket] = []
        self._is_over = False
        self.host = "127.0.0.1"
        self._listening = socket.create_server((self.host, 0), backlog=128)
        self.port = int(self._listening.getsockname()[1])
        self.accepted = 0
        """Connections so far."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        self.cut()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.speak()

    def be_silent(self) -> None:
        """Pass no byte on, in either direction, on old and new connections."""
        self._speaking.clear()

    def speak(self) -> None:
        """Pass on what was held back, and everything that follows."""
        self._speaking.set()

    def lose(self) -> None:
        """Never pass on another byte of the present connections, as a firewall does that has lost
        its state; new ones are passed on.
        """
        self._speaking.clear()
        self._speaking = threading.Event()
        self._speaking.set()

    def cut(self) -> None:
        """Close every connection, at both ends."""
        for one in self._held:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._held.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                self.accepted += 1
                self._held.append(near)
                if self._is_over:  # It came while the others were closed.
                    near.close()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        speaking = self._speaking
        speaking.wait()
        with suppress(OSError):
            far = self._connect()
            self._held.append(far)
            if self._is_over:
                far.close()
            back = threading.Thread(target=_pass_on, args=(near, far, speaking), daemon=True)
            back.start()
            _pass_on(far, near, speaking)

    def _connect(self) -> socket.socket:
        if isinstance(self._target, Path):
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._target))
            return far
        return socket.create_connection(self._target)


def _pass_on(source: socket.socket, to: socket.socket, speaking: threading.Event) -> None:
    with suppress(OSError):
        while True:
            chunk = source.recv(2**16)
            # Bytes that arrive while it is silent wait, and so does the end of the connection.
            speaking.wait()
            if not chunk:
                to.shutdown(socket.SHUT_WR)
                return
            to.sendall(chunk)
