"""What policyd and the gateway count stays bounded, whatever their clients and upstreams send."""

from time import perf_counter
from typing import Any

import pytest

from gateway.request_metrics import RequestMetrics
from policyd.client.request_outcome import RequestOutcome
from policyd.decider.metrics import DecisionMetrics
from policyd.decision_log.record import Outcome, Record, Verdict
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyReason
from policyd.engine.states import Ignored, Mode, Source, UserState
from policyd.telemetry.bounds import CHILDREN, MODELS
from policyd.telemetry.metrics import Metrics
from policyd.v1.policy_pb2 import ENDING_COMPLETE

MANY = 10_000


def record(number: int) -> Record:
    """A decision in which all that can differ does."""
    return Record(
        id=f"{number:032x}",
        verdict=Verdict.DENIED,
        status=422,
        key_id=f"key_{number}",
        operation=f"operation-{number}",
        mode=Mode.ENFORCE,
        source=Source.KEY,
        ignored=Ignored.NOT_IGNORED,
        in_scope=True,
        user_state=UserState.ABSENT,
        identifier="user",
        summary="",
        flags=f"flag-{number}",
        revision=1,
        body_user=UserState.ABSENT,
        body_safety_identifier=UserState.ABSENT,
        overrides="",
        results=f'[["policy-{number}",3,"",2,0,"no"]]',
    )


def test_decisions() -> None:
    """10,000 operations, flags and policies make no more series than there may be."""
    metrics = Metrics()
    counting = DecisionMetrics(metrics)
    for number in range(MANY):
        counting.decided("grpc", (record(number),), perf_counter())
    names = ("policyd_decisions_total", "policyd_policy_results_total")
    for name in names:
        assert len(metrics._counts[name]._counts) == CHILDREN + 1
        children = set(map(id, metrics._counts[name]._counts.values()))
        assert len(children) == CHILDREN + 1
    assert len(counting._by_kind) <= 4096


def test_refused_keys_and_outcomes() -> None:
    """Requests without a key make one series for each reason; statuses are those of HTTP."""
    metrics = Metrics()
    counting = DecisionMetrics(metrics)
    for number in range(1000):
        refused = RefusedKey(
            f"{number:032x}",
            RefusedKeyReason.UNKNOWN,
            path=f"/{number}",
            model=f"m{number}",
            source_ip=f"10.0.{number // 256}.{number % 256}",
        )
        counting.decided("http", (refused,), perf_counter())
        counting.reported((Outcome(f"{number:032x}", status=number),))
    assert set(metrics._counts["policyd_refused_keys_total"]._counts) == {("unknown",)}
    assert set(metrics._counts["policyd_decisions_total"]._counts) == {
        ("http", "other", "denied", "key")
    }
    assert len(metrics._counts["policyd_outcomes_total"]._counts) == 502


@pytest.mark.parametrize("kind", ["input", "output", "cached", "cache_write"])
def test_models(kind: str) -> None:
    """10,000 models that an upstream names are MODELS, and the rest is one."""
    counting = RequestMetrics(None)  # type: ignore[arg-type]  # it is looked at by keep() only
    tokens_used: dict[str, Any] = {f"{kind}_tokens": 2}
    for number in range(MANY):
        model = f"model-{number}"
        counting.used(RequestOutcome("0" * 32, ENDING_COMPLETE, 1, model=model, **tokens_used))
    tokens = counting._tokens
    found = [model for model, one in tokens._counts if one == kind]
    assert len(found) == MODELS + 1
    assert tokens.of("other", kind).pending >= 2 * (MANY - MODELS)
