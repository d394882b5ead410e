"""Makes docs/images/console-logs.png: the log of a demo, as the console shows it.

`make screenshot` runs it. It starts `policyd demo` with data of its own on free ports, sends the
two requests that the README shows, and takes the picture with the system's Chromium.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import sync_playwright

_PICTURE = Path(__file__).parent.parent / "images" / "console-logs.png"
_SIZE = {"width": 1180, "height": 640}
_POLICYD = Path(sys.executable).with_name("policyd")
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FREE = "127.0.0.1:0"
_HELLO = '"messages": [{"role": "user", "content": "Hello there"}]'
_BODIES = (
    f'{{"model": "gpt-4o-mini", "user": "alice", {_HELLO}}}',
    f'{{"model": "gpt-4o-mini", {_HELLO}}}',
)


class Demo(NamedTuple):
    """A demo that runs."""

    gateway: str
    console: str
    key: str
    token: str
    """Signs in to the console."""


@contextmanager
def demo() -> Iterator[Demo]:
    """`policyd demo`, while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        addresses = ("--gateway", _FREE, "--grpc", _FREE, "--console", _FREE)
        command = [str(_POLICYD), "demo", "--data", folder, *addresses]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            told = ""
            assert process.stdout is not None
            while "Ctrl-C stops" not in told:
                line = process.stdout.readline()
                if not line:
                    sys.exit("policyd demo has ended before it was ready")
                told += line
            yield Demo(
                gateway=_found(r"gateway listens on (http://\S+?);", told),
                console=_found(r"(http://\S+)/first-password", told),
                key=_found(r"(up-[0-9A-Za-z]{48})", told),
                token=(Path(folder) / "admin-token").read_text(encoding="utf-8").strip(),
            )
        finally:
            process.terminate()
            process.wait()


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        sys.exit(f"policyd demo did not print {pattern}:\n{text}")
    return match[1]


def send(running: Demo, body: str) -> None:
    """Send one request through the gateway, whatever the answer is."""
    headers = {"Content-Type": "application/json", "x-usagepanda-api-key": running.key}
    request = urllib.request.Request(
        f"{running.gateway}/v1/chat/completions", body.encode(), headers
    )
    try:
        urllib.request.urlopen(request).close()
    except urllib.error.HTTPError as denied:
        denied.close()


def take(running: Demo, browser_path: str) -> None:
    """Sign in, and take the picture of the log once both requests are there."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        # Playwright's own type of a size is private.
        page = browser.new_page(viewport=_SIZE, color_scheme="light")  # type: ignore[arg-type]
        page.goto(f"{running.console}/sign-in")
        page.fill("#password", running.token)
        page.click("button.primary")
        page.goto(f"{running.console}/logs")
        row = page.locator("tbody tr")
        row.filter(has_text="alice").first.wait_for()
        # The tip on the flag says why the request was blocked.
        row.filter(has_text="Blocked").first.locator("button.flag").hover()
        page.screenshot(path=_PICTURE)
        browser.close()


def main() -> None:
    """Make the picture anew."""
    browser_path = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if browser_path is None:
        sys.exit("there is no Chromium (Debian: apt-get install chromium)")
    with demo() as running:
        for body in _BODIES:
            send(running, body)
        take(running, browser_path)
    sys.stdout.write(f"{_PICTURE} is made anew\n")


if __name__ == "__main__":
    main()
