"""Evaluate beside methods of the same server that decide nothing, and beside Cerbos; batches."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import grpc
from google.protobuf.empty_pb2 import Empty

from benchmarks import peers, traffic
from benchmarks.deployment import Deployment
from benchmarks.evaluate_server import SERVICE
from benchmarks.findings import Findings, cpu_chart
from benchmarks.load import Target, grpc_target, http_target
from benchmarks.processes import Tree
from benchmarks.rounds import Case, Comparison, Plan, Turn, compare, comparison_table, table
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    BatchEvaluateItem,
    BatchEvaluateRequest,
    BatchEvaluateResponse,
    Decision,
    EvaluateRequest,
    EvaluateResponse,
)

EMPTY, SAME, ALLOWED, DENIED = "empty", "same messages", "Evaluate, allowed", "Evaluate, denied"
OVER_HTTP = "Evaluate, over HTTP"
CERBOS, CERBOS_LOGGED = "Cerbos", "Cerbos, logged to a file"
BATCHES = (10, 100)
_LARGE = BATCHES[-1]
_BATCH_CONCURRENCY = 16
_EVALUATE, _BATCH = (f"/policyd.v1.PolicyService/{name}" for name in ("Evaluate", "BatchEvaluate"))
_PATIENCE = 30.0
_SERVER = ("python", "-m", "benchmarks.evaluate_server")


class _Batch(NamedTuple):
    case: Case
    size: int


async def run(folder: Path, plan: Plan) -> Findings:
    """Measure. `folder` is for databases and configurations."""
    findings = Findings()
    with ExitStack() as running:
        deployment = Deployment(folder / "policyd", running, command=_SERVER, over_http=True)
        cases = [*_ours(deployment), _over_http(deployment)]
        batches = [_batch(deployment, size) for size in BATCHES]
        for name, logged in {CERBOS: False, CERBOS_LOGGED: True}.items():
            try:
                cerbos = peers.Cerbos(running, folder / name, logged=logged)
                one, many = cerbos.target(1), cerbos.target(_LARGE)
            except (peers.Absent, RuntimeError, grpc.RpcError) as error:
                findings.absent.append(str(error))
                continue
            parts = {"policyd": Tree(cerbos.program.pid)}
            cases.append(Case(name, one, parts))
            batches.append(_Batch(Case(f"{name}, {_LARGE}", many, parts), _LARGE))
        _note(await compare(cases, plan.part(0.75)), findings)
        short = plan._replace(concurrencies=(_BATCH_CONCURRENCY,))
        (found,) = await compare([one.case for one in batches], short)
        _note_batches(found, {one.case.name: one.size for one in batches}, findings)
        # Once more, as h2load sees no status of gRPC.
        _ours(deployment)
        _batch(deployment, _LARGE)
    return findings


def _ours(deployment: Deployment) -> list[Case]:
    place, parts = deployment.place, deployment.parts
    allowed = traffic.asked(deployment.key)
    message = allowed.SerializeToString()
    empty = _target(place, f"/{SERVICE}/Empty", Empty().SerializeToString())
    same = _target(place, f"/{SERVICE}/Same", message)
    only = {"policyd": parts["policyd"]}
    return [
        Case(EMPTY, empty, only),
        Case(SAME, same, only),
        _evaluate(deployment, ALLOWED, allowed, DECISION_ALLOW),
        _evaluate(deployment, DENIED, traffic.asked(deployment.key, user=None), DECISION_DENY),
    ]


def _evaluate(
    deployment: Deployment, name: str, request: EvaluateRequest, expected: Decision.ValueType
) -> Case:
    message = request.SerializeToString()
    answer = _ask(deployment.place, _EVALUATE, message)
    if EvaluateResponse.FromString(answer).decision != expected:
        raise RuntimeError(f"policyd decided otherwise: {answer!r}")
    target = grpc_target(deployment.place, _EVALUATE, message, len(answer))
    return Case(name, target, deployment.parts, settle=deployment.shipped)


def _over_http(deployment: Deployment) -> Case:
    """Evaluate by the Connect protocol, on as many connections as there are calls at once."""
    message = traffic.asked(deployment.key).SerializeToString()
    headers = {"Content-Type": "application/proto"}
    target = http_target(f"http://{deployment.http}{_EVALUATE}", message, headers)
    return Case(OVER_HTTP, target, deployment.parts, settle=deployment.shipped)


def _batch(deployment: Deployment, size: int) -> _Batch:
    request = traffic.asked(deployment.key)
    items = [BatchEvaluateItem(id=str(number), request=request) for number in range(size)]
    message = BatchEvaluateRequest(items=items).SerializeToString()
    answer = _ask(deployment.place, _BATCH, message)
    results = BatchEvaluateResponse.FromString(answer).results
    if [one.response.decision for one in results] != [DECISION_ALLOW] * size:
        raise RuntimeError(f"policyd decided otherwise: {results[:1]}")
    target = grpc_target(deployment.place, _BATCH, message, len(answer))
    name = f"BatchEvaluate, {size}"
    return _Batch(Case(name, target, deployment.parts, settle=deployment.shipped), size)


def _target(place: str, method: str, message: bytes) -> Target:
    return grpc_target(place, method, message, len(_ask(place, method, message)))


def _ask(place: str, method: str, message: bytes) -> bytes:
    with grpc.insecure_channel(place) as channel:
        call: Any = channel.unary_unary(method)  # Without serializers it takes and gives bytes.
        return bytes(call(message, timeout=_PATIENCE))


def _note(found: Sequence[Comparison], findings: Findings) -> None:
    title = "Evaluate beside methods that decide nothing, and beside Cerbos"
    findings.tables.append(comparison_table(title, found, EMPTY))
    findings.charts.append(cpu_chart("evaluate-cpu", "What a call of Evaluate costs", found))
    findings.failures(found)
    for one in found:
        for case in (ALLOWED, DENIED, OVER_HTTP):
            for other in (EMPTY, SAME, CERBOS, CERBOS_LOGGED):
                pair = (case, other)
                name = f"evaluate: {case} beside {other}"
                findings.beside(one, f"{name}, CPU", _total, pair)
                findings.beside(one, f"{name}, rate", _rate, pair, "higher")


def _note_batches(found: Comparison, sizes: Mapping[str, int], findings: Findings) -> None:
    findings.failures([found])
    rows = []
    for name, turns in found.turns.items():
        size, cpu = sizes[name], median(turn.total for turn in turns)
        rate, p50 = median(map(_rate, turns)), median(turn.p50 for turn in turns)
        cells = (f"{size * rate:.0f}", f"{1e3 * p50:.2f}", f"{1e6 * cpu / size:.1f}")
        rows.append((name, *cells, f"{size / cpu:.0f}"))
    for other in (CERBOS, CERBOS_LOGGED):
        pair = (f"BatchEvaluate, {_LARGE}", f"{other}, {_LARGE}")
        name = f"evaluate: BatchEvaluate of {_LARGE} beside {other}, decisions per CPU second"
        findings.beside(found, name, _per_second, pair, "higher")
    columns = ("what", "decisions/s", "p50 ms of a call", "CPU µs each", "decisions per CPU s")
    title = f"Several decisions in a call, {_BATCH_CONCURRENCY} calls at once"
    findings.tables.append(table(title, columns, rows))


def _total(turn: Turn) -> float:
    return turn.total


def _rate(turn: Turn) -> float:
    return turn.rate


def _per_second(turn: Turn) -> float:
    return 1 / turn.total
