"""What other settings would have done: the logged requests of a key, decided again by them.

The log groups requests by all that a decision depends on (store/history.py), so each group is
decided once, by the same engine that decides requests. What the log lacks is not guessed: such
requests are counted apart, as older versions of policyd kept less of a request.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from policyd.decision_log import inputs
from policyd.decision_log.record import MAX_TEXT, Record
from policyd.engine import endpoints
from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.model import DecisionInput
from policyd.engine.places import SAFETY_IDENTIFIER, USER, EndUser, Target
from policyd.engine.policy import Need
from policyd.engine.settings import KeySettings, Setting, Settings
from policyd.engine.states import Credential, Mode, ModelState, Override, UserState
from policyd.policies import TABLE, decide
from policyd.store import Store
from policyd.store.history import Group, Kind

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
    """Blocked requests by operation, most frequent first. "": not known."""
    by_model: list[tuple[str, int]]
    by_user_agent: list[tuple[str, int]]
    examples: list[Record]
    """The newest blocked requests."""
    flagged: int = 0
    """Requests that would have been allowed, and flagged as violating a policy."""
    unknown: int = 0
    """Requests for which the log lacks what the policies look at."""


class _Fate(Enum):
    """What would have become of a request."""

    ALLOWED = 0
    FLAGGED = 1
    BLOCKED = 2
    UNKNOWN = 3


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
    history = store.history(key_id, since, until, _needs((*settings.policies, *defaults)))
    counts: Counter[_Fate] = Counter()
    blocked: list[Group] = []
    for group in history.groups():
        fate = _fate(group.kind, settings, defaults)
        counts[fate] += group.requests
        if fate is _Fate.BLOCKED:
            blocked.append(group)
    # The newest requests are in the groups whose newest requests are the newest.
    newest = sorted(blocked, key=lambda group: group.newest, reverse=True)[:EXAMPLES]
    return Simulation(
        requests=counts.total(),
        blocked=counts[_Fate.BLOCKED],
        by_operation=_most((group.kind.operation, group.requests) for group in blocked),
        by_model=_most((group.kind.model, group.requests) for group in blocked),
        by_user_agent=_most((group.kind.user_agent, group.requests) for group in blocked),
        examples=history.newest([group.kind for group in newest], EXAMPLES) if newest else [],
        flagged=counts[_Fate.FLAGGED],
        unknown=counts[_Fate.UNKNOWN],
    )


def _needs(settings: Settings) -> frozenset[Need]:
    """What the policies that are set look at."""
    judging = [name for name, setting in settings if not _is_off_for_good(setting)]
    known = [TABLE.by_name[name] for name in judging if name in TABLE.by_name]
    return frozenset(need for policy in known for need in policy.needs)


def _is_off_for_good(setting: Setting) -> bool:
    return setting.mode is Mode.OFF and setting.override is Override.LOCKED


def _most(counted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for name, count in counted:
        total[name] += count
    return sorted(total.items(), key=lambda one: (-one[1], one[0]))[:MOST]


def _fate(kind: Kind, settings: KeySettings, defaults: Settings) -> _Fate:
    if kind.header_overrides == inputs.NOT_KEPT or _lacks_places(kind, settings.accept):
        return _Fate.UNKNOWN
    decision = decide(_described(kind), settings, defaults)
    if decision.denial:
        return _Fate.BLOCKED
    if decision.missing:
        return _Fate.UNKNOWN
    return _Fate.FLAGGED if decision.would_deny else _Fate.ALLOWED


def _lacks_places(kind: Kind, accept: tuple[str, ...]) -> bool:
    """Whether an end user may have stood in a place that the log says nothing about."""
    if not kind.in_scope or kind.end_users not in ("", inputs.NOT_KEPT):
        return False
    known = {USER: kind.body_user, SAFETY_IDENTIFIER: kind.body_safety_identifier}
    if any(known.get(place) == UserState.VALID for place in accept):
        return False
    endpoint = _BY_OPERATION.get(kind.operation)
    counting = endpoint.places(accept) if endpoint else accept
    return any(place not in known for place in counting)


def _described(kind: Kind) -> DecisionInput:
    body_user = UserState(kind.body_user)
    states = {
        USER: body_user,
        SAFETY_IDENTIFIER: UserState(kind.body_safety_identifier),
        **inputs.read_place_states(kind.end_users),
    }
    model_state = ModelState(kind.model_state)
    target = Target(kind.in_scope, _BY_OPERATION.get(kind.operation))
    if kind.path:
        in_path = endpoints.resolve("POST", kind.path)
        target = target._replace(model=in_path.model, has_unclear_model=in_path.has_unclear_model)
    return DecisionInput(
        target,
        Credential.GIVEN,
        "",
        inputs.read_overrides(kind.overrides, kind.header_overrides),
        tuple(EndUser(place, state, _value(kind, place, state)) for place, state in states.items()),
        model_state,
        kind.model if model_state is ModelState.GIVEN else "",
        inputs.read_number(kind.token_limit),
        inputs.read_number(kind.prompt_chars),
        body_user if body_user.is_unreadable else UserState.UNKNOWN,
    )


def _value(kind: Kind, place: str, state: UserState) -> str | None:
    """The end user in a place. None: the log does not have it, or not all of it."""
    is_kept = state is UserState.VALID and place == kind.identifier
    return kind.end_user if is_kept and 0 < len(kind.end_user) < MAX_TEXT else None
