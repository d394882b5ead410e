"""What other settings would have done, by the log of either database."""

from datetime import timedelta
from typing import Any

from policyd.decision_log.record import ABSENT, INVALID, Record
from policyd.engine.settings import KeySettings, Setting, Settings
from policyd.engine.states import Mode, ModelState, Override, UserState
from policyd.policies import TABLE
from policyd.simulation import EXAMPLES, Simulation, simulate
from policyd.store import Store
from tests.support.records import START, denied, record

DAY = timedelta(days=1)
READ: dict[str, Any] = {
    "end_users": "{}",
    "model_state": ModelState.GIVEN,
    "path": "/v1/chat/completions",
}
"""What this version keeps of each request whose body it has read."""


def simulated(store: Store, policies: Settings, defaults: Settings = (), **more: Any) -> Simulation:
    key = KeySettings("key_1", policies, **more)
    return simulate(store, "key_1", key, START, START + DAY, defaults)


def fates(found: Simulation) -> tuple[int, int, int, int]:
    return found.requests, found.blocked, found.flagged, found.unknown


def limit(mode: Mode, value: str = "500") -> Settings:
    return (("max_tokens", Setting(mode, value)),)


def test_of_the_original_policy(store: Store) -> None:
    """Requests without a user are blocked or flagged, those of older versions, too."""
    entries = [record(user_agent="a"), record(), denied(model="b"), denied(**READ)]
    entries += [denied(overrides="false"), denied(in_scope=False, operation="")]
    store.log.append(entries)
    enforced = simulated(store, TABLE.with_original(Mode.ENFORCE))
    assert fates(enforced) == (6, 2, 0, 0)
    assert enforced.by_operation == [("chat_completion", 2)]
    assert enforced.by_model == [("b", 1), ("gpt-4o-mini", 1)]
    assert enforced.by_user_agent == [("", 2)]
    assert {one.id for one in enforced.examples} == {entries[2].id, entries[3].id}
    assert fates(simulated(store, TABLE.with_original(Mode.AUDIT))) == (6, 0, 2, 0)
    locked = TABLE.with_original(Mode.ENFORCE, Override.LOCKED)
    assert fates(simulated(store, locked)) == (6, 3, 0, 0)
    assert fates(simulated(store, (), TABLE.with_original(Mode.ENFORCE))) == (6, 2, 0, 0)


def test_of_a_limit(store: Store) -> None:
    """Each request is decided by its own number; without one, it is counted as unknown."""
    numbers = [400, 500, 501, 10**18, ABSENT, INVALID]
    made = [record(token_limit=one, **READ) for one in numbers]
    store.log.append([*made, record(), record(token_limit=None, **READ)])
    assert fates(simulated(store, limit(Mode.ENFORCE))) == (8, 4, 0, 2)
    assert fates(simulated(store, limit(Mode.AUDIT))) == (8, 0, 4, 2)
    assert fates(simulated(store, limit(Mode.OFF))) == (8, 0, 0, 0)


def test_of_models(store: Store) -> None:
    """Models of the body and of the path count, if the log knows that there was no other."""
    azure = READ | {"path": "/openai/deployments/gpt-4o/chat/completions"}
    store.log.append(
        [
            record(model="gpt-4o", **READ),
            record(model="o1", **READ),
            record(model="o1", **azure),
            record(model="gpt-4o"),
        ]
    )
    blocked = (("disabled_models", Setting(Mode.ENFORCE, "gpt-4*")),)
    assert fates(simulated(store, blocked)) == (4, 2, 0, 1)


def test_of_end_users(store: Store) -> None:
    """A format is checked where the log has the whole end user, in the place that counts."""
    store.log.append(
        [
            record(end_user="ada@example.com", **READ),
            record(end_user="ada", **READ),
            record(end_user="x" * 256, **READ),
            record(end_user="", **READ),
            denied(**READ),
        ]
    )
    rule = (("user_format", Setting(Mode.ENFORCE, "no_email")),)
    assert fates(simulated(store, rule)) == (5, 1, 0, 2)


def test_of_further_places(store: Store) -> None:
    """An end user may have stood in a place that older versions did not look at."""
    azure = "user_security_context.end_user_id"
    named = READ | {"end_users": f'{{"{azure}":{UserState.VALID:d}}}'}
    store.log.append([denied(**named), denied(**READ), denied(), record()])
    enforced = TABLE.with_original(Mode.ENFORCE)
    assert fates(simulated(store, enforced, accept=("user", azure))) == (4, 1, 0, 1)


def test_of_override_headers(store: Store) -> None:
    """A request's own headers count, as far as the settings let them."""
    header = '{"x-usagepanda-max-tokens":["100"]}'
    invalid = '{"x-usagepanda-max-tokens":["invalid"]}'
    store.log.append(
        [
            record(token_limit=200, header_overrides=header, **READ),
            record(token_limit=200, header_overrides=invalid, **READ),
            record(token_limit=200, header_overrides="?", **READ),
        ]
    )
    assert fates(simulated(store, ())) == (3, 1, 0, 1)
    locked = (("max_tokens", Setting(Mode.ENFORCE, "500", Override.LOCKED)),)
    assert fates(simulated(store, locked)) == (3, 0, 0, 1)


def test_of_a_policy_that_is_not_known(store: Store) -> None:
    """A key that enforces it decides nothing, so every request would be denied."""
    store.log.append([record(**READ), record()])
    unknown = (("of_a_newer_version", Setting(Mode.ENFORCE, "x")),)
    assert fates(simulated(store, unknown)) == (2, 2, 0, 0)


def test_examples(store: Store) -> None:
    """The examples are the newest requests, whatever kind each is of."""
    made: list[Record] = [
        record(START + timedelta(seconds=n), token_limit=1000 + n % 3, **READ) for n in range(30)
    ]
    made += [record(START + timedelta(minutes=n), token_limit=n, **READ) for n in range(3)]
    store.log.append(made)
    found = simulated(store, limit(Mode.ENFORCE)).examples
    assert found == made[:30][::-1][:EXAMPLES]
