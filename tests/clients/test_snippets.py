"""The console's snippets run as they are printed, with the provider's key and without one."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from policyd.console.view.snippets import snippets
from tests.support import requirements
from tests.support.processes import environment
from tests.support.stack import Gateway, Upstream

NODE = Path(__file__).parent / "node" / "node_modules"
ANSWER = "Your last message arrived with 2 words."
ways = pytest.mark.parametrize("provider", [{}, {"OPENAI_API_KEY": "sk-mine"}], ids=["", "key"])
shown = pytest.mark.parametrize("is_shown", [True, False])


def ask(
    command: list[str], gateway: Gateway, name: str, key: str, env: Mapping[str, str], shown: bool
) -> str:
    """What the snippet prints: it is the command's last word, or a file named there."""
    [text] = (one.text for one in snippets(gateway.url, key if shown else None) if one.id == name)
    if Path(command[-1]).parent.is_dir() and command[-1].endswith(".mjs"):
        Path(command[-1]).write_text(text)
    else:
        command = [*command, text]
    wanted = environment({**env, **({} if shown else {"POLICYD_KEY": key})})
    done = subprocess.run(command, capture_output=True, env=wanted, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def sent_key(upstream: Upstream) -> str:
    """What the upstream was sent as the provider's key."""
    return upstream.received[-1].header(b"authorization")


@ways
@shown
def test_python(
    gateway: Gateway,
    upstream: Upstream,
    enforcing: str,
    provider: dict[str, str],
    is_shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python's prints the answer. It runs in this process, as the SDK takes a second to load."""
    given = (
        {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}
        | ({} if is_shown else {"POLICYD_KEY": enforcing})
        | provider
    )
    for name, value in given.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    key = enforcing if is_shown else None
    [text] = (one.text for one in snippets(gateway.url, key) if one.id == "python")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "snippet.py", "exec"), names)  # noqa: S102  # it is ours
    names["client"].close()
    assert ANSWER in capsys.readouterr().out
    assert sent_key(upstream) == f"Bearer {provider.get('OPENAI_API_KEY', 'none')}"


@pytest.mark.slow
def test_python_in_a_process(gateway: Gateway, enforcing: str) -> None:
    """Python's is a program by itself."""
    assert ANSWER in ask([sys.executable, "-c"], gateway, "python", enforcing, {}, shown=False)


@ways
@shown
def test_curl(
    gateway: Gateway, upstream: Upstream, enforcing: str, provider: dict[str, str], is_shown: bool
) -> None:
    """curl's prints the answer's JSON."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    assert ANSWER in ask(["sh", "-c"], gateway, "curl", enforcing, provider, is_shown)
    assert sent_key(upstream) == f"Bearer {provider.get('OPENAI_API_KEY', 'none')}"


@pytest.mark.clients
@ways
@shown
def test_node(
    gateway: Gateway,
    upstream: Upstream,
    enforcing: str,
    provider: dict[str, str],
    is_shown: bool,
    tmp_path: Path,
) -> None:
    """Node's prints the answer."""
    node = requirements.program("node", "nodejs")
    requirements.file(NODE / "openai", "make test-all installs it with npm")
    (tmp_path / "node_modules").symlink_to(NODE)
    command = [node, str(tmp_path / "ask.mjs")]
    assert ANSWER in ask(command, gateway, "node", enforcing, provider, is_shown)
    assert sent_key(upstream) == f"Bearer {provider.get('OPENAI_API_KEY', 'none')}"
