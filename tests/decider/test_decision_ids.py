"""A request that is sent again is one decision of the log, whichever policyd it reaches then."""

import asyncio
import dataclasses
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from policyd.decider.decision_ids import MAX_SKEW, DecisionIds
from policyd.errors import InvalidDescriptor
from policyd.store import LogFilter, Step, Store
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.processes import Policyd, run
from tests.support.records import denied, outcome

ALLOWED = pb.EvaluateResponse(decision=pb.DECISION_ALLOW)
DENIED = pb.EvaluateResponse(decision=pb.DECISION_DENY)


def fresh(skew: int = 0) -> str:
    """An idempotency key of the present time."""
    return f"{time.time_ns() // 1_000_000 + skew:012x}{secrets.token_hex(10)}"


def asked(idempotency_key: str, **given: Any) -> pb.EvaluateRequest:
    named: dict[str, Any] = {"key": "up-1", "has_user": False} | given
    return pb.EvaluateRequest(idempotency_key=idempotency_key, **named)


def test_the_same_again() -> None:
    """A request that is sent again and decided alike has the same ID in every process.

    Otherwise it has another.
    """
    key = fresh()
    one, other = DecisionIds("a" * 12), DecisionIds("b" * 12)
    first = one.repeatable(asked(key), DENIED)
    assert first == other.repeatable(asked(key), DENIED)
    assert first[:12] == key[:12]
    others = [
        one.repeatable(asked(key), ALLOWED),
        one.repeatable(asked(key, key="up-2"), DENIED),
        one.repeatable(asked(key, user="ada"), DENIED),
        one.repeatable(asked(key, trace_id="t"), DENIED),
        one.repeatable(asked(key[:-1] + ("0" if key[-1] != "0" else "1")), DENIED),
    ]
    assert len({first, *others}) == 6


def test_a_clock_that_is_off() -> None:
    """An idempotency key of another time gives no decision that time: it counts as none."""
    ids = DecisionIds("a" * 12)
    for skew in (-2 * MAX_SKEW, 2 * MAX_SKEW):
        request = asked(fresh(skew))
        given = {ids.repeatable(request, DENIED) for _ in range(2)}
        assert len(given) == 2
        assert {one[12:24] for one in given} == {"a" * 12}
    assert ids.repeatable(asked(fresh(-MAX_SKEW // 2)), DENIED)[12:24] != "a" * 12


@pytest.mark.parametrize(
    "key",
    ["x", fresh()[:-1], fresh() + "0", fresh().upper() + "A", "g" * 32, fresh() + "\n"],
    # The keys' timestamps change.
    ids=["short", "a digit less", "a digit more", "in capitals", "not hexadecimal", "a line"],
)
def test_a_malformed_key(key: str) -> None:
    """A malformed idempotency key is the gateway's fault, and is reported at once."""
    with pytest.raises(InvalidDescriptor, match="idempotency_key"):
        DecisionIds("a" * 12).repeatable(asked(key), DENIED)


def ask(policyd: Policyd, *requests: pb.EvaluateRequest) -> list[pb.BatchEvaluateResult]:
    items = [pb.BatchEvaluateItem(id=str(n), request=one) for n, one in enumerate(requests)]
    with grpc.insecure_channel(policyd.grpc) as channel:
        batch = pb.BatchEvaluateRequest(items=items)
        answer = PolicyServiceStub(channel).BatchEvaluate(batch, timeout=30)
        return list(answer.results)


def logged(database_url: str) -> list[str]:
    store = Store(database_url)
    try:
        return [one.id for one in store.log.page(LogFilter())]
    finally:
        store.close()


def test_asked_again_after_a_kill(tmp_path: Path, start: Callable[..., Any]) -> None:
    """A decision that its caller did not receive, as policyd was killed, is logged once."""
    policyd = start(Policyd, tmp_path)
    secret = policyd.create_key("enforce")
    requests = [asked(fresh(), key=secret) for _ in range(50)]
    requests.append(asked("malformed", key=secret))
    before = ask(policyd, *requests)
    assert before[-1].status.reason == "INVALID_DESCRIPTOR"
    policyd.stop(signal.SIGKILL)
    policyd = start(Policyd, tmp_path)
    again = ask(policyd, *requests)
    assert before[:-1] == again[:-1]
    assert policyd.stop() == 0, policyd.errors
    ids = [one.response.decision_id for one in before[:-1]]
    assert sorted(logged(policyd.database_url)) == sorted(ids)


def test_asked_again_at_another_replica(
    tmp_path: Path, start: Callable[..., Any], new_database: str
) -> None:
    """The decision is logged once there too.

    After a change of the key's settings, both decisions are logged.
    """
    first = start(Policyd, tmp_path / "one", database_url=new_database)
    second = start(Policyd, tmp_path / "two", database_url=new_database)
    secret = first.create_key("enforce")
    requests = [asked(fresh(), key=secret) for _ in range(200)]
    one = ask(first, *requests)
    second.reach(one[0].response.revision)  # Until then, the replica does not know the key.
    two = ask(second, *requests)
    same = {result.response.decision_id for result in (*one, *two)}
    assert len(same) == 200
    [key_id] = {result.response.api_key_id for result in one}
    set_off = ("policyd", "keys", "set", key_id, "--enforce-user-ids", "off")
    assert run(*set_off, "--database-url", new_database).returncode == 0
    revision = one[0].response.revision + 1
    second.reach(revision)
    allowed = ask(second, requests[0])[0].response
    assert allowed.decision == pb.DECISION_ALLOW
    assert allowed.decision_id not in same
    for policyd in (first, second):
        assert policyd.stop() == 0, policyd.errors
        assert not [line for line in policyd.errors if "stay in the spool" in line]
    store = Store(new_database)
    assert store.log.status().decisions == 201
    store.close()


@pytest.mark.slow
async def test_two_replicas_that_log_it_at_once(new_database: str) -> None:
    """The second replica finds the decision in the store, and ships the rest."""
    stores = [Store(new_database), Store(new_database)]
    stores[0].migrate()
    rounds = 20
    for number in range(rounds):
        repeated = [denied() for _ in range(20)]
        step = Step("", "file", number, number + 1)
        work = (
            asyncio.to_thread(
                store.log.append,
                [*repeated, denied(), outcome(repeated[0])],
                dataclasses.replace(step, spool=spool),
            )
            for store, spool in zip(stores, ("one", "two"), strict=True)
        )
        await asyncio.gather(*work)
    assert stores[0].log.status().decisions == rounds * (20 + 2)
    for store in stores:
        store.close()
