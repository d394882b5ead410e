"""A real LiteLLM proxy with the hook, and requests to it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.support import requirements
from tests.support.conformance import Key
from tests.support.processes import Program
from tests.support.raw_http import Headers, Response, ask

FOLDER = Path(__file__).parent
VENV = FOLDER.parent.parent / ".venv-litellm/bin"
MASTER = ("Authorization", "Bearer sk-master")
JSON = ("Content-Type", "application/json")
CHAT = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello there"}]}'
CHAT_WITH_USER = CHAT[:-1] + b',"user":"alice"}'
ENFORCE = Key(mode="enforce")


class LiteLLM(Program):
    """`litellm` with a config, before `upstream`."""

    def __init__(self, config: Path, port: int, upstream: str, env: Mapping[str, str]) -> None:
        requirements.file(VENV / "litellm", "make interop installs it")
        given = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # Else LiteLLM downloads one.
            "LITELLM_MASTER_KEY": "sk-master",
            "OPENAI_API_KEY": "sk-upstream",
            "OPENAI_BASE_URL": f"{upstream}/v1",
        }
        words = f"exec {VENV}/litellm --config {config} --host 127.0.0.1 --port {port} 2>&1"
        super().__init__(
            *("/bin/sh", "-c", words),
            ready=r"Uvicorn running on (\S+)",
            env=given | dict(env),
        )
        self.url = self.match[1]


def send(
    proxy: LiteLLM, target: str, body: bytes, headers: Headers = (), method: str = "POST"
) -> Response:
    return asyncio.run(ask(proxy.url, method, target, [MASTER, JSON, *headers], body))


def chat(proxy: LiteLLM, key: str, body: bytes, *headers: tuple[str, str]) -> Response:
    """Send a chat completion."""
    pairs = [("x-usagepanda-api-key", key), *headers]
    return send(proxy, "/v1/chat/completions", body, pairs)
