"""Evaluate with the decision log, for each --spool-sync, beside a server that does not log."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc

from benchmarks import traffic
from benchmarks.deployment import Deployment
from benchmarks.findings import Findings, cpu_chart
from benchmarks.load import grpc_target
from benchmarks.rounds import Case, Plan, Turn, compare, comparison_table
from policyd.decision_log.spool import SYNCS
from policyd.v1.policy_pb2 import DECISION_DENY
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

UNLOGGED = "without the log"


async def run(folder: Path, plan: Plan) -> Findings:
    """Measure. `folder` is for the databases."""
    findings = Findings()
    with ExitStack() as running:
        cases = [
            _case(
                name, Deployment(folder / name.replace(" ", "-"), running, *flags, command=command)
            )
            for name, command, flags in _servers()
        ]
        found = await compare(cases, plan)
    findings.tables.append(
        comparison_table("What the decision log costs: Evaluate, denied", found, UNLOGGED)
    )
    findings.charts.append(cpu_chart("log-cpu", "What the decision log costs", found))
    findings.failures(found)
    for one in found:
        for sync in SYNCS:
            pair, name = (f"sync {sync}", UNLOGGED), f"log: sync {sync} beside no log"
            findings.beside(one, f"{name}, rate", _rate, pair, "higher")
            findings.beside(one, f"{name}, CPU", _total, pair)
    return findings


def _servers() -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """The name, command and flags of each."""
    for sync in SYNCS:
        yield f"sync {sync}", (), ("--spool-sync", sync)
    yield UNLOGGED, ("python", "-m", "benchmarks.unlogged_server"), ()


def _case(name: str, deployment: Deployment) -> Case:
    request = traffic.asked(deployment.key, user=None)
    with grpc.insecure_channel(deployment.place) as channel:
        answer = PolicyServiceStub(channel).Evaluate(request, timeout=30)
    if answer.decision != DECISION_DENY:
        raise RuntimeError(f"decided otherwise: {answer}")
    method = "/policyd.v1.PolicyService/Evaluate"
    message, length = request.SerializeToString(), answer.ByteSize()
    target = grpc_target(deployment.place, method, message, length)
    return Case(name, target, deployment.parts, settle=deployment.shipped)


def _rate(turn: Turn) -> float:
    return turn.rate


def _total(turn: Turn) -> float:
    return turn.total
