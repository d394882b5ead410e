"""Envoy with the shipped bootstrap, compared with itself without the check, and with our
gateway."""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks import traffic
from benchmarks.deployment import Deployment, start_gateway
from benchmarks.envoy_allow import READY
from benchmarks.findings import Findings, cpu_chart
from benchmarks.load import http_target
from benchmarks.processes import ROOT, Program, Tree, started
from benchmarks.rounds import Case, Comparison, Plan, compare, comparison_table
from benchmarks.upstream import upstream

BARE, CHECKED, DENIED = "Envoy, no check", "Envoy, checked", "Envoy, denied (422)"
OVER_HTTP = "Envoy, checked over HTTP"
NO_DECISION = "Envoy, a check that decides nothing"
NGINX = "Envoy, a check over HTTP by nginx"
UPSTREAM = "upstream"
GATEWAY = "our gateway, checked"
_PROXY, _SERVER = "proxy", "server that allows all"
_CONCURRENCY = 16
_SHIPPED = ROOT / "integrations" / "envoy" / "envoy.yaml"
_OVER_HTTP = _SHIPPED.with_name("http-check.yaml")
_READY = "starting main dispatch loop"


async def run(folder: Path, plan: Plan) -> Findings:
    """Measure. `folder` is for databases and configurations."""
    findings = Findings()
    with ExitStack() as running:
        stub = running.enter_context(upstream(folder))
        deployment = Deployment(folder / "policyd", running, over_http=True)
        cases = _cases(folder, running, deployment, stub)
        found = await compare(cases, plan._replace(concurrencies=(_CONCURRENCY,)))
    _note(found, findings)
    return findings


def _cases(folder: Path, running: ExitStack, deployment: Deployment, stub: Program) -> list[Case]:
    places = (deployment.place, stub.places[0])
    chat, beside = traffic.body(300), {UPSTREAM: Tree(stub.pid)}
    headers = dict(traffic.headers(deployment.key))
    checking = running.enter_context(_envoy(folder / "checking", _bootstrap(*places)))
    changed = _asking_over_http(_bootstrap(*places), deployment.http)
    over_http = running.enter_context(_envoy(folder / "over-http", changed))

    def unchecked(name: str, proxy: Program, server: Program | None = None) -> Case:
        target = http_target(proxy.places[0] + traffic.PATH, chat, headers, 200)
        parts = {_PROXY: Tree(proxy.pid)}
        if server is not None:
            parts[_SERVER] = Tree(server.pid)
        return Case(name, target, parts, beside)

    def checked(name: str, proxy: Program, body: bytes, status: int) -> Case:
        target = http_target(proxy.places[0] + traffic.PATH, body, headers, status)
        parts = {_PROXY: Tree(proxy.pid), **deployment.parts}
        return Case(name, target, parts, beside, deployment.shipped)

    bare = running.enter_context(_envoy(folder / "bare", _without_check(_bootstrap(*places))))
    gateway = start_gateway(running, *places)
    allowing, by_allowing, by_nginx = _floors(folder, running, places)
    return [
        unchecked(BARE, bare),
        checked(CHECKED, checking, chat, 200),
        checked(OVER_HTTP, over_http, chat, 200),
        checked(DENIED, checking, traffic.body(300, user=None), 422),
        checked(GATEWAY, gateway, chat, 200),
        unchecked(NO_DECISION, by_allowing, allowing),
        unchecked(NGINX, by_nginx),
    ]


def _floors(
    folder: Path, running: ExitStack, places: tuple[str, str]
) -> tuple[Program, Program, Program]:
    """The least that a check costs: a server that allows everything, the Envoy that asks it over
    gRPC, and an Envoy that asks the upstream's nginx over HTTP, whose CPU is not counted."""
    command = ("python", "-m", "benchmarks.envoy_allow")
    allowing = running.enter_context(started(*command, ready=READY + r"(\S+)"))
    bootstrap = _bootstrap(allowing.places[0], places[1])
    by_allowing = running.enter_context(_envoy(folder / "by-allowing", bootstrap))
    changed = _asking_over_http(_bootstrap(*places), places[1])
    return allowing, by_allowing, running.enter_context(_envoy(folder / "by-nginx", changed))


def _note(found: Sequence[Comparison], findings: Findings) -> None:
    findings.failures(found)
    title = "Envoy with the shipped bootstrap beside itself without the check"
    findings.tables.append(comparison_table(title, found, BARE))
    findings.charts.append(cpu_chart("envoy-cpu", "What a request costs through Envoy", found))
    for one in found:
        for case in one.turns:
            if case != BARE:
                pair, name = (case, BARE), f"envoy: {case} beside {BARE}"
                findings.beside(one, f"{name}, rate", lambda turn: turn.rate, pair, "higher")
                findings.beside(one, f"{name}, CPU", lambda turn: turn.total, pair)


def _bootstrap(policy: str, upstream: str) -> dict[str, Any]:
    """The shipped bootstrap with these addresses, and without TLS, as the gateway has it here."""
    made: dict[str, Any] = yaml.safe_load(_SHIPPED.read_text())
    made["admin"] = {"address": _address("127.0.0.1:0")}
    resources = made["static_resources"]
    resources["listeners"][0]["address"] = _address("127.0.0.1:0")
    for cluster, place in zip(resources["clusters"], (policy, upstream), strict=True):
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        endpoint["endpoint"]["address"] = _address(place.removeprefix("http://"))
        cluster.pop("transport_socket", None)
    return made


def _asking_over_http(bootstrap: dict[str, Any], policy: str) -> dict[str, Any]:
    shipped: dict[str, Any] = yaml.safe_load(_OVER_HTTP.read_text())
    _manager(bootstrap)["http_filters"][:1] = shipped["http_filters"]
    (cluster,) = shipped["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"] = _address(policy.removeprefix("http://"))
    bootstrap["static_resources"]["clusters"].append(cluster)
    return bootstrap


def _manager(bootstrap: dict[str, Any]) -> dict[str, Any]:
    (chain,) = bootstrap["static_resources"]["listeners"][0]["filter_chains"]
    found: dict[str, Any] = chain["filters"][0]["typed_config"]
    return found


def _without_check(bootstrap: dict[str, Any]) -> dict[str, Any]:
    manager = _manager(bootstrap)
    del manager["http_filters"][0]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        route.pop("typed_per_filter_config", None)
    return bootstrap


def _address(place: str) -> dict[str, Any]:
    host, _, port = place.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@contextmanager
def _envoy(folder: Path, bootstrap: dict[str, Any]) -> Iterator[Program]:
    """An Envoy with one worker thread, as the gateway is one process; it says where it listens."""
    folder.mkdir()
    file, admin = folder / "envoy.json", folder / "admin"
    file.write_text(json.dumps(bootstrap))
    command = (
        *("envoy", "--config-path", str(file), "--admin-address-path", str(admin)),
        *("--disable-hot-restart", "--concurrency", "1"),
    )
    with started(*command, ready=_READY) as envoy:
        at = f"http://{admin.read_text()}/listeners?format=json"
        with urllib.request.urlopen(at) as found:  # our own
            (listener,) = json.load(found)["listener_statuses"]
        place = listener["local_address"]["socket_address"]
        yield Program(envoy.pid, (f"http://{place['address']}:{place['port_value']}",))
