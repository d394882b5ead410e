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


NAMES = {KEY_HEADER, *TABLE.by_header, TRACE_HEADER}
OWN = {spelling for name in NAMES for spelling in _spellings(name)}


def _config(name: str) -> Any:
    text = (FOLDER / name).read_text(encoding="utf-8")
    return yaml.safe_load(text.removesuffix("#END\n"))


def test_nginx() -> None:
    """nginx removes each of our headers, and passes no request on that has another of ours."""
    config = (FOLDER / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    assert set(re.findall(r'proxy_set_header (x-usagepanda-\S+) "";', config)) == NAMES
    script = (FOLDER / "nginx" / "policyd.js").read_text(encoding="utf-8")
    [removed] = re.findall(r"REMOVED = \[(.*?)\]", script, re.DOTALL)
    assert set(re.findall(r"'(.*?)'", removed)) == NAMES


def test_traefik() -> None:
    """Traefik shows policyd our headers and those that override the method, and forwards none of
    ours."""
    middlewares = _config("traefik/dynamic.yaml")["http"]["middlewares"]
    shown = middlewares["policyd"]["forwardAuth"]["authRequestHeaders"]
    assert {name.lower() for name in shown} >= HEADERS | NAMES
    removed = middlewares["own-headers"]["headers"]["customRequestHeaders"]
    assert {name for name in OWN if removed[name] == ""} == OWN


def test_apisix() -> None:
    """APISIX shows policyd our headers, and removes both kinds: of a repeated header policyd would
    get the first only."""
    [route] = _config("apisix/apisix.yaml")["routes"]
    assert set(route["plugins"]["forward-auth"]["request_headers"]) >= NAMES
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
