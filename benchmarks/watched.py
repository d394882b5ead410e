"""The cost of metrics, logs as JSON, access lines and traces, beside a policyd without them."""

from contextlib import ExitStack
from pathlib import Path

from benchmarks import traffic
from benchmarks.deployment import GATEWAY, Deployment, start_gateway
from benchmarks.findings import Findings, cpu_chart
from benchmarks.load import http_target
from benchmarks.processes import Program, Tree
from benchmarks.rounds import Case, Plan, compare, comparison_table
from benchmarks.upstream import upstream
from tests.support.collector import Collector

OFF = "nothing"
_METRICS = ("--metrics", "127.0.0.1:0")
_ACCESS = ("--access-log", "--log-format", "json")


async def run(folder: Path, plan: Plan) -> Findings:
    """Measure. `folder` is for the databases."""
    findings = Findings()
    with ExitStack() as running:
        stub = running.enter_context(upstream(folder))
        collector = running.enter_context(Collector())
        sampled = ("--traces", collector.url, "--trace-sample", "0.01")
        watched: dict[str, tuple[str, ...]] = {
            OFF: (),
            "`--metrics`": _METRICS,
            "`--access-log --log-format json`": _ACCESS,
            "`--traces`, 1 % sampled": sampled,
            "all three": (*_METRICS, *_ACCESS, *sampled),
        }
        cases = [
            _case(folder / str(number), running, name, flags, stub)
            for number, (name, flags) in enumerate(watched.items())
        ]
        found = await compare(cases, plan)
    title = "What it costs gateway and policyd to be watched"
    findings.tables.append(comparison_table(title, found, OFF))
    findings.charts.append(cpu_chart("watched-cpu", title, found))
    findings.failures(found)
    for one in found:
        for name in list(watched)[1:]:
            key = f"watched: {name.replace('`', '')} beside nothing, CPU"
            findings.beside(one, key, lambda turn: turn.total, (name, OFF))
    return findings


def _case(
    folder: Path, running: ExitStack, name: str, flags: tuple[str, ...], stub: Program
) -> Case:
    deployment = Deployment(folder, running, *flags)
    gateway = start_gateway(running, deployment.place, stub.places[0], *flags)
    headers = dict(traffic.headers(deployment.key))
    target = http_target(gateway.places[0] + traffic.PATH, traffic.body(300), headers)
    parts = {GATEWAY: Tree(gateway.pid), **deployment.parts}
    return Case(name, target, parts, {"upstream": Tree(stub.pid)}, deployment.shipped)
