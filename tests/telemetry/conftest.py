"""policyd and its gateway with metrics, and a little load of each kind."""

import re
import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.http_posts import post
from tests.support.processes import Policyd, Program
from tests.support.stack import Background, Gateway, Upstream

METRICS = ("--metrics", "127.0.0.1:0", "--workers", "2")


def address(program: Program) -> str:
    """Where it serves metrics, by its first line."""
    found = re.search(r"metrics=(\S+)", "".join(program.output))
    assert found
    return found[1]


def scrape(program: Program) -> dict[str, Metric]:
    """Its metrics, by name."""
    with urllib.request.urlopen(f"http://{address(program)}/metrics", timeout=60) as answer:
        page = answer.read().decode()
    return {one.name: one for one in text_string_to_metric_families(page)}


def total(program: Program, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels; 0 where there is none."""
    return sum(
        sample.value
        for metric in scrape(program).values()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@dataclass
class Measured:
    """policyd, a gateway that asks it and one that decides by itself, and an upstream; keys that
    enforce and audit."""

    policyd: Policyd
    gateway: Gateway
    local: Gateway
    upstream: Upstream
    enforcing: str
    audited: str

    def chat(
        self,
        key: str,
        *,
        user: str = "",
        model: str = "gpt-4o-mini",
        gateway: Gateway | None = None,
    ) -> int:
        """Ask for a chat completion. Returns the status."""
        named = {"user": user} if user else {}
        message = {"role": "user", "content": "Hello"}
        body = {"model": model, "messages": [message], **named}
        url = f"{(gateway or self.gateway).url}/v1/chat/completions"
        return post(url, body, {"x-usagepanda-api-key": key})

    def load(self) -> None:
        """Some requests of each kind."""
        assert self.chat(self.enforcing, user="alice") == 200
        assert self.chat(self.enforcing, user="alice", gateway=self.local) == 200
        assert self.chat(self.enforcing) == 422
        assert self.chat(self.audited) == 200
        assert self.chat("up-never-issued", user="alice") == 403
        check = f"http://{self.policyd.http}/v1/check/v1/chat/completions"
        assert post(check, {"user": "alice"}, {"x-usagepanda-api-key": self.enforcing}) == 200
        # No descriptor, so there is no decision.
        assert post(f"http://{self.policyd.http}/v1/evaluate", {"has_user": 7}, {}) == 400


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, background: Background
) -> Iterator[Measured]:
    """The servers, with two workers each."""
    folder = tmp_path_factory.mktemp("measured")
    with Upstream(background) as upstream:
        yield from _measured(folder, upstream)


def _measured(folder: Path, upstream: Upstream) -> Iterator[Measured]:
    token = folder / "local-token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(16))
    serving = ("--http", "127.0.0.1:0", "--local-token-file", str(token))
    policyd = Policyd(folder, *serving, *METRICS)
    gateway = Gateway(policyd.grpc, upstream.url, *METRICS, "--policy-timeout", "30")
    keys = policyd.create_key("enforce"), policyd.create_key("audit")
    deciding = ("--decide", "local", "--spool", str(folder / "gateway-spool"))
    flags = (*METRICS, *deciding, "--policyd-token-file", str(token))
    local = Gateway(policyd.grpc, upstream.url, *flags)
    yield Measured(policyd, gateway, local, upstream, *keys)
    for one in (gateway, local):
        assert one.stop() == 0, one.errors
    assert policyd.stop() == 0, policyd.errors
    assert "Traceback" not in "".join(gateway.errors + local.errors + policyd.errors)
