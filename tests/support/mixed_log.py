"""A log of decisions of every kind with their outcomes, for tests of filters and statistics."""

import random
from datetime import datetime, timedelta

import msgspec

from policyd.decision_log.record import Ending, Record, Verdict
from policyd.engine.states import UserState
from policyd.store import Store
from tests.support.records import START, denied, outcome, record

USERS = ("ada", "ADA@example.com", "bob_1", "50%", "Zoë", "zoË", "back\\slash", "")
MODELS = ("gpt-4o-mini", "gpt-4o", "")
KEYS = ("key_1", "key_2")


def fill(
    store: Store,
    count: int = 300,
    *,
    start: datetime = START,
    step: timedelta = timedelta(minutes=1),
    keys: tuple[str, ...] = KEYS,
) -> list[Record]:
    """Fill the log with decisions that are `step` apart. Returns them, oldest first."""
    chance = random.Random(7)  # keeps no secret
    made = [_ended(chance, _one(chance, start + n * step, keys)) for n in range(count)]
    store.log.append([*made, *(one.outcome for one in made if one.outcome)])
    return made


def is_failure(one: Record) -> bool:
    """Whether its answer was an error, or did not come to its end."""
    told = one.outcome
    return told is not None and (
        told.status >= 400 or told.ending in (Ending.UPSTREAM_BROKE, Ending.NO_ANSWER)
    )


def _one(chance: random.Random, at: datetime, keys: tuple[str, ...]) -> Record:
    user = chance.choice(USERS)
    given = {
        "model": chance.choice(MODELS),
        "source_ip": chance.choice(("192.0.2.1", "2001:db8::1")),
        "key_id": chance.choice(keys),
        "in_scope": chance.random() < 0.9,
    }
    if chance.random() < 0.2:
        return denied(at, **given)
    state = UserState.VALID if user else chance.choice((UserState.ABSENT, UserState.VALID))
    verdict = Verdict.ALLOWED if user else Verdict.WOULD_DENY
    return record(at, end_user=user, user_state=state, verdict=verdict, **given)


def _ended(chance: random.Random, one: Record) -> Record:
    if one.status or chance.random() < 0.2:
        return one
    status = chance.choice((200, 404, 500, 0))
    told = outcome(
        one,
        status=status,
        ending=Ending(chance.choice((1, 2, 3)) if status else 4),
        duration_us=chance.choice((900, 2000, int(10 ** (3 + 4 * chance.random())), None)),
    )
    return msgspec.structs.replace(one, outcome=told)
