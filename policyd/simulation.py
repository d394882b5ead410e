"""What other settings would have done: the logged requests of a key, decided again by them.

The log groups requests by all that a decision depends on (store/history.py), so each group is
decided once, by the same engine that decides requests.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from policyd.decision_log import inputs
from policyd.decision_log.record import Record
from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.model import (
    SAFETY_IDENTIFIER,
    USER,
    Credential,
    DecisionInput,
    EndUser,
    KeySettings,
    Settings,
    Target,
    UserState,
)
from policyd.policies import decide
from policyd.store import Store
from policyd.store.history import Kind

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
    """Blocked requests by operation, most first. "": not known."""
    by_model: list[tuple[str, int]]
    by_user_agent: list[tuple[str, int]]
    examples: list[Record]
    """The newest blocked requests."""


def simulate(
    store: Store,
    key_id: str,
    settings: KeySettings,
    since: datetime,
    until: datetime,
    defaults: Settings,
) -> Simulation:
    """Decide a key's requests between two moments by `settings`, with `defaults` as the server's.
    Raises StoreUnavailable."""
    history = store.history(key_id, since, until)
    kinds = history.kinds()
    blocked = {kind: count for kind, count in kinds if _would_block(kind, settings, defaults)}
    by_operation: Counter[str] = Counter()
    for kind, count in blocked.items():
        by_operation[kind.operation] += count
    return Simulation(
        requests=sum(count for _, count in kinds),
        blocked=by_operation.total(),
        by_operation=by_operation.most_common(MOST),
        by_model=history.most(blocked, "model", MOST) if blocked else [],
        by_user_agent=history.most(blocked, "user_agent", MOST) if blocked else [],
        examples=history.newest(blocked, EXAMPLES) if blocked else [],
    )


def _would_block(kind: Kind, settings: KeySettings, defaults: Settings) -> bool:
    described = DecisionInput(
        Target(kind.in_scope, _BY_OPERATION.get(kind.operation)),
        Credential.GIVEN,
        "",
        inputs.read_overrides(kind.overrides, ""),
        (
            EndUser(USER, UserState(kind.body_user)),
            EndUser(SAFETY_IDENTIFIER, UserState(kind.body_safety_identifier)),
        ),
    )
    return decide(described, settings, defaults).denial is not None
