"""Envoy with the shipped bootstrap, compared with itself without the check, and with our
gateway."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import yaml

from benchmarks import traffic
from benchmarks.gateway import POLICYD, READY, UPSTREAM, Asker, start_upstream
from benchmarks.processes import (
    POLICYD_IS_READY,
    ROOT,
    Program,
    create_key,
    policyd,
    started,
)
from benchmarks.rounds import Case, Plan, Turns, ratios, table, take_turns

BARE, CHECKED, REFUSED = "Envoy, no check", "Envoy, checked", "Envoy, refused (422)"
GATEWAY = "our gateway, checked"
_PROXY = "proxy"
_CONCURRENCY = 16
_SHIPPED = ROOT / "integrations" / "envoy" / "envoy.yaml"
_READY = "starting main dispatch loop"


async def run(folder: Path, plan: Plan) -> str:
    """Measure, and give the result as Markdown. `folder` is for the database and configurations."""
    with ExitStack() as running:
        start = running.enter_context
        database_url = f"sqlite:///{folder}/envoy.db"
        key = create_key(database_url)
        server = start(started(*policyd(database_url), ready=POLICYD_IS_READY))
        upstream = start(start_upstream())
        places = (server.places[0], upstream.places[0])
        checking = start(_envoy(folder / "checking", _bootstrap(*places)))
        bare = start(_envoy(folder / "bare", _without_check(_bootstrap(*places))))
        listen = ("serve", "--listen", "127.0.0.1:0", "--policyd", places[0])
        flags = (*listen, "--upstream", places[1])
        gateway = start(started("policyd-gateway", *flags, ready=READY))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            asker = Asker(session, traffic.headers(key))
            pids = {POLICYD: server.pid, UPSTREAM: upstream.pid}
            cases = _cases(asker, pids, bare, checking, gateway)
            return _table(await take_turns(cases, _CONCURRENCY, plan))


def _cases(
    asker: Asker, pids: dict[str, int], bare: Program, checking: Program, gateway: Program
) -> list[Case]:
    chat, anonymous = traffic.body(), traffic.body(user=None)

    def case(name: str, proxy: Program, body: bytes, status: int) -> Case:
        programs = {_PROXY: proxy.pid, **pids}
        return Case(name, lambda: asker.ask(proxy.places[0], body, status), programs)

    return [
        case(BARE, bare, chat, 200),
        case(CHECKED, checking, chat, 200),
        case(REFUSED, checking, anonymous, 422),
        case(GATEWAY, gateway, chat, 200),
    ]


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


def _without_check(bootstrap: dict[str, Any]) -> dict[str, Any]:
    (chain,) = bootstrap["static_resources"]["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
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


def _table(turns: Turns) -> str:
    programs = (_PROXY, POLICYD, UPSTREAM)
    columns = (
        *("what", "requests/s", f"beside {BARE}", f"beside {GATEWAY}", "p50 ms", "p99 ms"),
        *(f"{name} CPU µs each" for name in programs),
    )
    rows = [
        (
            *(name, f"{median(turn.rate for turn in measured):.0f}"),
            *(ratios(measured, turns[BARE]), ratios(measured, turns[GATEWAY])),
            f"{1e3 * median(turn.p50 for turn in measured):.2f}",
            f"{1e3 * median(turn.p99 for turn in measured):.2f}",
            *(
                f"{1e6 * median(turn.cpu[program] for turn in measured):.0f}"
                for program in programs
            ),
        )
        for name, measured in turns.items()
    ]
    return table(f"Envoy and our gateway, {_CONCURRENCY} requests at once", columns, rows)
