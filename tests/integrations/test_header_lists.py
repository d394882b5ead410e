"""Gateways whose configuration lists headers by full name list every spelling of them."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from policyd.descriptor.headers import KEY_HEADER, TRACE_HEADER
from policyd.engine.method_override import HEADERS
from policyd.policies import TABLE

FOLDER = Path(__file__).parents[2] / "integrations"


def _spellings(name: str) -> set[str]:
    parts = name.split("-")
    joints = product("-_", repeat=len(parts) - 1)
    return {"".join(a + b for a, b in zip(parts, (*one, ""), strict=True)) for one in joints}


OWN = {
    spelling
    for name in (KEY_HEADER, *TABLE.by_header, TRACE_HEADER)
    for spelling in _spellings(name)
}


def _config(name: str) -> Any:
    text = (FOLDER / name).read_text(encoding="utf-8")
    return yaml.safe_load(text.removesuffix("#END\n"))


def test_traefik() -> None:
    """Traefik shows policyd the headers that override the method, and forwards none of ours."""
    middlewares = _config("traefik/dynamic.yaml")["http"]["middlewares"]
    shown = middlewares["policyd"]["forwardAuth"]["authRequestHeaders"]
    assert {name.lower() for name in shown} >= HEADERS
    removed = middlewares["own-headers"]["headers"]["customRequestHeaders"]
    assert {name for name in OWN if removed[name] == ""} == OWN


def test_apisix() -> None:
    """APISIX removes both kinds: of a repeated header policyd would get the first only."""
    [route] = _config("apisix/apisix.yaml")["routes"]
    removed = route["plugins"]["proxy-rewrite"]["headers"]["remove"]
    assert set(removed) >= HEADERS | OWN


def test_envoy() -> None:
    """Envoy shows policyd the headers that override the method, by a pattern."""
    text = (FOLDER / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    patterns = re.findall(r'safe_regex: \{ regex: "([^"]*method[^"]*)" \}', text)
    assert patterns
    assert all(re.fullmatch(pattern, name) for pattern in patterns for name in HEADERS)


def test_example_gateways() -> None:
    """The example gateways show policyd every spelling, too."""
    pattern = r"x[-_]http[-_]method([-_]override)?|x[-_]method[-_]override"
    for name in ("node/src/gateway.ts", "go/main.go", "java/src/main/java/example/Gateway.java"):
        assert pattern in (FOLDER / "clients" / name).read_text(encoding="utf-8")
    assert all(re.fullmatch(pattern, name) for name in HEADERS)
