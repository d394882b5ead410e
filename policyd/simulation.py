"""What would break: the requests that the log has, decided once more by other settings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from policyd.decision import decide
from policyd.endpoints import ENDPOINTS
from policyd.model import Credential, Descriptor, KeySettings, Mode, Target, UserState
from policyd.record import Record
from policyd.store import Store
from policyd.store.log import Facts

MOST = 10
"""Rows of each list."""
EXAMPLES = 5
_BY_OPERATION = {endpoint.operation: endpoint for endpoint in ENDPOINTS.values()}


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the settings would have done to a key's requests."""

    requests: int
    blocked: int
    by_operation: list[tuple[str, int]]
    """Of the blocked ones, most first; "" stands for what is not known."""
    by_model: list[tuple[str, int]]
    by_user_agent: list[tuple[str, int]]
    examples: list[Record]
    """Of the blocked ones, the newest of different kinds first."""


def simulate(
    store: Store,
    key_id: str,
    settings: KeySettings,
    since: datetime,
    until: datetime,
    default: Mode,
) -> Simulation:
    """Decide a key's requests between the two moments by `settings`. Raises StoreUnavailable."""
    facts = store.log.facts(key_id, since, until)
    blocked = [one for one in facts if _would_block(one, settings, default)]
    newest = sorted((one.newest for one in blocked), reverse=True)[:EXAMPLES]
    return Simulation(
        requests=sum(one.requests for one in facts),
        blocked=sum(one.requests for one in blocked),
        by_operation=_most((one.operation, one.requests) for one in blocked),
        by_model=_most((one.model, one.requests) for one in blocked),
        by_user_agent=_most((one.user_agent, one.requests) for one in blocked),
        examples=[store.log.get(decision_id) for decision_id in newest],
    )


def _would_block(facts: Facts, settings: KeySettings, default: Mode) -> bool:
    described = Descriptor(
        Target(facts.in_scope, _BY_OPERATION.get(facts.operation)),
        Credential.GIVEN,
        "",
        tuple(facts.overrides.split(",")) if facts.overrides else (),
        UserState(facts.body_user),
        UserState(facts.body_safety_identifier),
    )
    return decide(described, settings, default).denial is not None


def _most(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for name, count in counts:
        total[name] += count
    return total.most_common(MOST)
