"""decide(): the one place where a request is allowed or denied. Pure and total.

The rules are docs/contract.md, sections 1 to 3:

- the route's mode holds where it has one, else the key's, else the server's default;
- a valid override header beats it, where the route or else the key lets it;
- an invalid one never weakens it;
- in scope, a request without a valid accepted identifier is denied (enforce) or flagged (audit);
- where the endpoint has none of those that are accepted, `user` is, if it has that;
- a path that servers may read as different endpoints never goes upstream, whatever the mode.
"""

from dataclasses import replace
from functools import lru_cache

from policyd.engine import denial, summary
from policyd.engine.model import (
    USER,
    Credential,
    Decision,
    DecisionInput,
    Endpoint,
    Explanation,
    Flag,
    Ignored,
    KeySettings,
    Mode,
    Override,
    RouteSettings,
    Source,
    UserState,
)

BLOCKED = Flag("policy_enforce_user_ids", denial.NO_USER)
INVALID_OVERRIDE = Flag(
    "invalid_override", "x-usagepanda-enforce-user-ids is not true or false, and was not followed"
)
NO_ROUTE = RouteSettings()
_OVERRIDE_MODES = {"true": Mode.ENFORCE, "false": Mode.OFF}


def decide(
    given: DecisionInput,
    settings: KeySettings | None,
    default: Mode,
    route: RouteSettings = NO_ROUTE,
) -> Decision:
    """Decide one request.

    `settings` are the key's, None where no key in force was given. `default` is the mode where
    neither `route` nor the key sets one.
    """
    if settings is None:
        return _deny_key(given.credential)
    override = route.override or settings.override
    base, source = _base(settings, default, route)
    mode, source, ignored = _mode_in_force(given.overrides, override, base, source)
    target = given.target
    if not target.in_scope:
        return _decision(mode, source, ignored, False, "", UserState.UNKNOWN, "", override)
    accept = route.accept or settings.accept
    identifier, state = _best_identifier(given, accept, target.endpoint)
    operation = target.endpoint.operation if target.endpoint else ""
    decision = _decision(mode, source, ignored, True, operation, state, identifier, override)
    return _deny_path(decision) if target.is_ambiguous else decision


def _base(settings: KeySettings, default: Mode, route: RouteSettings) -> tuple[Mode, Source]:
    if route.mode:
        return route.mode, Source.ROUTE
    return (settings.mode, Source.KEY) if settings.mode else (default, Source.DEFAULT)


def _mode_in_force(
    overrides: tuple[str, ...], override: Override, base: Mode, source: Source
) -> tuple[Mode, Source, Ignored]:
    if not overrides:
        return base, source, Ignored.NOT_IGNORED
    modes = {_OVERRIDE_MODES.get(value.strip(" \t").lower()) for value in overrides}
    wanted = max((mode for mode in modes if mode), default=None)
    if override is Override.LOCKED:
        return base, source, Ignored.INVALID if len(modes) > 1 or not wanted else Ignored.LOCKED
    if len(modes) > 1 or wanted is None:
        # It does not say for certain what the client wants, so it may make the mode stricter, and
        # never weaker.
        return (*_stricter(base, source, wanted), Ignored.INVALID)
    if override is Override.TIGHTEN_ONLY and wanted < base:
        return base, source, Ignored.TIGHTEN_ONLY
    return wanted, Source.HEADER, Ignored.NOT_IGNORED


def _stricter(base: Mode, source: Source, wanted: Mode | None) -> tuple[Mode, Source]:
    if wanted is not None and wanted > base:
        return wanted, Source.HEADER
    return base, source


def _best_identifier(
    given: DecisionInput, accept: tuple[str, ...], endpoint: Endpoint | None
) -> tuple[str, UserState]:
    found: list[tuple[str, UserState]] = []
    for identifier in _places(accept, endpoint):
        state = given.user if identifier == USER else given.safety_identifier
        if state is UserState.VALID:
            return identifier, state
        found.append((identifier, state))
    # Of those that do not count, the one of which there is something to say.
    telling = [one for one in found if one[1] not in (UserState.ABSENT, UserState.UNKNOWN)]
    return next(iter(telling or found), ("", UserState.ABSENT))


def _places(accept: tuple[str, ...], endpoint: Endpoint | None) -> tuple[str, ...]:
    """The identifiers that count. Where the endpoint has none that is accepted, `user` counts if
    the endpoint has that, lest a key be shut out of it."""
    if endpoint is None:
        return accept
    places = tuple(identifier for identifier in accept if identifier in endpoint.identifiers)
    return places or tuple(one for one in endpoint.identifiers if one == USER)


def _deny_key(credential: Credential) -> Decision:
    text = summary.for_credential(credential)
    explanation = Explanation(
        None, None, Ignored.NOT_IGNORED, False, "", UserState.UNKNOWN, "", text
    )
    return Decision(denial.for_credential(credential), False, (), explanation)


@lru_cache(maxsize=4096)
def _deny_path(decision: Decision) -> Decision:
    explanation = replace(decision.explanation, summary=summary.AMBIGUOUS_PATH)
    return replace(
        decision, denial=denial.AMBIGUOUS_PATH, would_deny=False, explanation=explanation
    )


# There are only so many ways in which a request can be decided, so each is put into words once.
@lru_cache(maxsize=4096)
def _decision(
    mode: Mode,
    source: Source,
    ignored: Ignored,
    in_scope: bool,
    operation: str,
    state: UserState,
    identifier: str,
    override: Override,
) -> Decision:
    offends = in_scope and state is not UserState.VALID and mode is not Mode.OFF
    is_denied = offends and mode is Mode.ENFORCE
    would_deny = offends and not is_denied
    why = Explanation(mode, source, ignored, in_scope, operation, state, identifier, "")
    text = summary.of(why, override, is_denied=is_denied, would_deny=would_deny)
    return Decision(
        denial=denial.for_user_state(state) if is_denied else None,
        would_deny=would_deny,
        flags=(BLOCKED,) * offends + (INVALID_OVERRIDE,) * (ignored is Ignored.INVALID),
        explanation=replace(why, summary=text),
    )
