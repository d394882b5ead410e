"""The pure core, called in this process: what deciding costs without any network."""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import traffic
from benchmarks.findings import Findings
from benchmarks.rounds import Plan, table, with_spread
from policyd.decider import Decider
from policyd.decider.access import DecisionAccess
from policyd.decider.metrics import DecisionMetrics
from policyd.decider.traces import DecisionTraces
from policyd.descriptor.body import read_body
from policyd.descriptor.body_memory import Bodies
from policyd.descriptor.evaluate_request import read
from policyd.engine.settings import KeyChange, KeyChanges, KeySettings
from policyd.engine.states import Mode
from policyd.keys import api_key
from policyd.keys.defaults import Defaults
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE, decide
from policyd.telemetry import access
from policyd.telemetry.access import AccessLog
from policyd.telemetry.json_log import json_formatter
from policyd.telemetry.metrics import this_process
from policyd.telemetry.tracing import Finished, Tracer
from policyd.v1.policy_pb2 import EvaluateRequest

_SETTINGS = KeySettings("key_benchmark", TABLE.with_original(Mode.ENFORCE))
_SIZES = {"1 KB": 1024, "100 KB": 100 * 1024, "1 MB": 2**20}
_LONGEST = 0.02
"""Seconds of one call's share in a round."""
Call = Callable[[], object]


async def run(_: Path, plan: Plan) -> Findings:
    """Measure."""
    calls = await _calls()
    seconds = min(plan.seconds, _LONGEST)
    counts = {name: _count(call, seconds) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _round in range(plan.rounds):
        for name, call in calls.items():
            found[name].append(1e6 * _seconds(call, counts[name]) / counts[name])
    rows = [(name, with_spread(each, 1)) for name, each in found.items()]
    findings = Findings([table("The core, in one process", ("call", "µs"), rows)])
    for name, each in found.items():
        findings.add(f"core: {name}", each, "µs")
    return findings


async def _calls() -> dict[str, Call]:
    key = api_key.generate()
    keys = StoredKeyTable(lambda *_: KeyChanges(1, (KeyChange(api_key.digest(key), _SETTINGS),)))
    await keys.refresh()
    made = partial(Decider, keys, Defaults(keys), "benchmark", lambda _: None, Bodies(2**29))
    decider, lined = made(), made(access=DecisionAccess(_access_log()))
    counted = made(metrics=DecisionMetrics(this_process()))
    sampling = {share: made(traces=DecisionTraces(Tracer(_Nowhere(), share))) for share in (0, 1)}
    allowed, denied = traffic.asked(key), traffic.asked(key, user=None)
    return {
        "decide, allowed": partial(decide, read(allowed)[0], _SETTINGS),
        "decide, denied": partial(decide, read(denied)[0], _SETTINGS),
        "read, a message": partial(read, allowed),
        "Evaluate without gRPC, allowed": _answering(decider, allowed),
        "Evaluate without gRPC, denied": _answering(decider, denied),
        # What is counted is handed over twice a second, which the servers' own processes do.
        "the same, allowed, counted for metrics": _answering(counted, allowed),
        "the same, allowed, with an access line": _answering(lined, allowed),
        "the same, traced but not sampled": _answering(sampling[0], allowed),
        "the same, traced and sampled": _answering(sampling[1], allowed),
        **{f"read_body, {name}": _reading(traffic.body(size)) for name, size in _SIZES.items()},
        "read_body, 1 MB, user twice": _reading(b'{"user":"a",' + traffic.body(2**20)[1:]),
    }


class _Nowhere:
    """Takes spans, and forgets them: a thread of its own would send them."""

    def put(self, span: Finished) -> None:
        """See Sender."""

    def close(self) -> None:
        """See Sender."""


def _access_log() -> AccessLog:
    """An access log in JSON, which goes nowhere."""
    handler = logging.FileHandler(os.devnull)
    handler.setFormatter(json_formatter())
    logger = logging.getLogger(access.NAME)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return AccessLog()


def _reading(body: bytes) -> Call:
    return partial(read_body, body, "application/json", "", traffic.ENDPOINT)


def _answering(decider: Decider, request: EvaluateRequest) -> Call:
    """A function that decides and logs, which never waits here."""

    def call() -> None:
        try:
            decider.answer(request, adapter="grpc").send(None)
        except StopIteration:
            return
        raise RuntimeError("the coroutine waits")

    return call


def _count(call: Call, seconds: float) -> int:
    """The number of calls that take about so many seconds."""
    count = 1
    while (taken := _seconds(call, count)) < seconds / 4:
        count *= 2
    return max(1, round(count * seconds / taken))


def _seconds(call: Call, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - started
