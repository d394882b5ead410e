"""Proxies of other makers as real processes, with the configuration in integrations/."""

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

INTEGRATIONS = Path(__file__).parents[3] / "integrations"


def configured(folder: Path, name: str, changes: Mapping[str, str]) -> Path:
    """A copy of integrations/NAME in `folder`, with every key of `changes` replaced by its value.

    Each of the keys must occur in it.
    """
    copy = folder / name
    shutil.copytree(INTEGRATIONS / name, copy)
    left = set(changes)
    for file in copy.iterdir():
        if file.suffix == ".md":
            continue
        text = file.read_text()
        for old, new in changes.items():
            if old in text:
                text = text.replace(old, new)
                left.discard(old)
        file.write_text(text)
    assert not left, f"integrations/{name} does not hold {left}"
    return copy


class Proxy:
    """A proxy that listens on `port` of this machine once it is entered."""

    def __init__(self, port: int, *command: str, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.h2_url = self.url
        """Where it speaks HTTP/2 in the clear."""
        self._port = port
        self._command = command
        self._folder = folder
        self._log = folder / "proxy.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def log(self) -> str:
        """The lines that it has written so far."""
        return self._log.read_text(errors="replace")

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{self._command[0]} does not listen: {self.log}")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def address(url: str) -> str:
    """The HOST:PORT of a URL."""
    return urlsplit(url).netloc
