"""What it costs to be watched: metrics, logs as JSON, access lines and traces, beside none."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import aiohttp

from benchmarks import traffic
from benchmarks.gateway import READY, Asker, start_upstream
from benchmarks.processes import POLICYD_IS_READY, Program, create_key, policyd, started
from benchmarks.rounds import CONCURRENCIES, Case, Plan, Turn, Turns, table, take_turns, with_spread
from tests.support.collector import Collector

OFF = "nothing"
GATEWAY, POLICYD = "gateway", "policyd"
_METRICS = ("--metrics", "127.0.0.1:0")
_ACCESS = ("--access-log", "--log-format", "json")


async def run(folder: Path, plan: Plan) -> str:
    """Measure, and give the result as Markdown. `folder` is for the databases."""
    with ExitStack() as running:
        collector = running.enter_context(Collector())
        traces = ("--traces", collector.url)
        sampled = (*traces, "--trace-sample", "0.01")
        watched: Mapping[str, tuple[str, ...]] = {
            OFF: (),
            "`--metrics`": _METRICS,
            "`--access-log --log-format json`": _ACCESS,
            "`--traces`, 1 % sampled": sampled,
            "all three": (*_METRICS, *_ACCESS, *sampled),
        }
        upstream = running.enter_context(start_upstream())
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        async with aiohttp.ClientSession(connector=connector) as session:
            cases = [
                _case(session, name, _start(folder / str(number), upstream, flags, running))
                for number, (name, flags) in enumerate(watched.items())
            ]
            found = {number: await take_turns(cases, number, plan) for number in CONCURRENCIES}
    return _table(found)


def _start(
    folder: Path, upstream: Program, flags: tuple[str, ...], running: ExitStack
) -> tuple[str, Program, Program]:
    folder.mkdir()
    url = f"sqlite:///{folder}/watched.db"
    key = create_key(url)
    server = running.enter_context(started(*policyd(url), *flags, ready=POLICYD_IS_READY))
    where = ("--policyd", server.places[0], "--upstream", upstream.places[0])
    # A machine that is busy fails no request.
    listen = ("serve", "--listen", "127.0.0.1:0", "--policy-timeout", "30")
    gateway = started("policyd-gateway", *listen, *where, *flags, ready=READY)
    return key, server, running.enter_context(gateway)


def _case(
    session: aiohttp.ClientSession, name: str, programs: tuple[str, Program, Program]
) -> Case:
    key, server, gateway = programs
    asker, chat = Asker(session, traffic.headers(key)), traffic.body()
    pids = {GATEWAY: gateway.pid, POLICYD: server.pid}
    return Case(name, lambda: asker.ask(gateway.places[0], chat, 200), pids)


def _both(turn: Turn) -> float:
    return turn.cpu[GATEWAY] + turn.cpu[POLICYD]


def _table(found: dict[int, Turns]) -> str:
    columns = ("requests at once", "what", "CPU µs a request", f"beside {OFF}", "requests/s beside")
    rows = [
        (
            *(concurrency, name, f"{1e6 * median(map(_both, measured)):.0f}"),
            with_spread(_both(a) / _both(b) for a, b in zip(measured, turns[OFF], strict=True)),
            with_spread(a.rate / b.rate for a, b in zip(measured, turns[OFF], strict=True)),
        )
        for concurrency, turns in found.items()
        for name, measured in turns.items()
    ]
    return table("What it costs gateway and policyd to be watched", columns, rows)
