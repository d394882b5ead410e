"""A week of made-up requests, so that the demo's console has something to show.

They are decided as real requests are, and marked as samples wherever they are shown.
"""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta

import msgspec

from policyd.decider import log_entries
from policyd.decision_log.pricing import cost
from policyd.decision_log.record import Ending, Outcome, Record, first_id
from policyd.descriptor import evaluate_request
from policyd.engine.settings import KeySettings
from policyd.engine.states import Mode
from policyd.policies import TABLE, decide
from policyd.store import Store
from policyd.store.database import now
from policyd.v1 import policy_pb2 as pb

REQUESTS = 1500
_DAYS = 7
_ENFORCED_FOR = timedelta(days=2)
"""How long the key has been in enforce mode; before that it was in audit mode."""
_USERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
_CLIENTS = (
    ("openai-python/3.54.0", 0.05),
    ("OpenAI/JS 6.9.1", 0.1),
    ("nightly-report/1.2", 0.9),
    ("curl/8.5.0", 0.4),
)
"""User agents, and the share of their requests that name no user."""
_REQUESTS = (
    ("/v1/chat/completions", "gpt-4o-mini"),
    ("/v1/chat/completions", "gpt-4o"),
    ("/v1/responses", "gpt-4.1-mini"),
    ("/v1/embeddings", "text-embedding-3-small"),
)


def fill(store: Store, key_id: str) -> None:
    """Add the sample to the log, as requests of this key."""
    store.log.append(list(_entries(key_id, now())))


def _entries(key_id: str, until: datetime) -> Iterator[Record | Outcome]:
    chance = random.Random(7)  # noqa: S311  # The same sample every time; it keeps no secret.
    moments = sorted(until - _DAYS * timedelta(days=1) * _age(chance) for _ in range(REQUESTS))
    for number, at in enumerate(moments):
        record = _record(chance, key_id, number, at, until)
        yield record
        if not record.status:
            yield _outcome(chance, record)


def _age(chance: random.Random) -> float:
    """The age of a request, as a share of the week. More requests come by day than by night."""
    while True:
        age = chance.random()
        if chance.random() < (0.25 if age * _DAYS % 1 > 0.6 else 1.0):
            return age


def _record(
    chance: random.Random, key_id: str, number: int, at: datetime, until: datetime
) -> Record:
    path, model = chance.choices(_REQUESTS, weights=(6, 2, 2, 3))[0]
    agent, unnamed = chance.choices(_CLIENTS, weights=(8, 5, 2, 1))[0]
    request = pb.EvaluateRequest(method="POST", path=path, model=model, user_agent=agent)
    request.source_ip = f"192.0.2.{chance.randint(1, 60)}"
    request.trace_id = f"sample-{number // 3}"
    if chance.random() < unnamed:
        request.user_state = pb.USER_STATE_ABSENT
    else:
        request.user = chance.choices(_USERS, weights=range(len(_USERS), 0, -1))[0]
    enforced = until - at < _ENFORCED_FOR
    settings = KeySettings(key_id, TABLE.with_original(Mode.ENFORCE if enforced else Mode.AUDIT))
    reading = evaluate_request.read(request)
    decision = decide(reading.decision_input, settings)
    decision_id = f"{first_id(at)}{chance.getrandbits(48):012x}{number:08x}"
    response = pb.EvaluateResponse(decision_id=decision_id, revision=1, api_key_id=key_id)
    record = log_entries.record(request, reading, decision, response)
    assert isinstance(record, Record)
    return msgspec.structs.replace(record, sample=True)


def _outcome(chance: random.Random, record: Record) -> Outcome:
    tokens = chance.randint(20, 1500)
    generated = 0 if record.operation == "embedding" else chance.randint(5, 600)
    first_byte = chance.randint(180_000, 900_000)
    return Outcome(
        record.id,
        Ending.COMPLETE,
        status=200,
        first_byte_us=first_byte,
        duration_us=first_byte + generated * 9_000,
        openai_id=f"chatcmpl-sample{chance.getrandbits(32):08x}",
        model=record.model,
        organization="sample-org",
        input_tokens=tokens,
        output_tokens=generated,
        cached_tokens=0,
        cost_nano=cost(record.model, tokens, generated, 0, 0, record.time),
    )
