"""decide(): the one place where a request is allowed or denied. Pure and total.

The rules are CONTRACT.md's sections 1 to 3:

- the route's mode holds where it has one, else the key's, else the server's default;
- a valid override header beats it, where the route or else the key lets it;
- an invalid one never weakens it;
- in scope, a request without a valid accepted identifier is denied (enforce) or flagged (audit);
- where the endpoint has none of those that are accepted, `user` is, if it has that;
- a path that servers may read as different endpoints never goes upstream, whatever the mode.
"""

from dataclasses import replace
from functools import lru_cache

from policyd.engine import denial
from policyd.engine.model import (
    MAX_SAFETY_IDENTIFIER,
    USER,
    Credential,
    Decision,
    DecisionInput,
    Denial,
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
    descriptor: DecisionInput,
    settings: KeySettings | None,
    default: Mode,
    route: RouteSettings = NO_ROUTE,
) -> Decision:
    """Decide one request.

    `settings` are the key's, None where no key in force was given. `default` is the mode where
    neither `route` nor the key sets one.
    """
    if settings is None:
        return _refuse_key(descriptor.credential)
    override = route.override or settings.override
    base, source = _base(settings, default, route)
    mode, source, ignored = _mode_in_force(descriptor.overrides, override, base, source)
    target = descriptor.target
    if not target.in_scope:
        return _decision(mode, source, ignored, False, "", UserState.UNKNOWN, "", override)
    accept = route.accept or settings.accept
    identifier, state = _best_identifier(descriptor, accept, target.endpoint)
    operation = target.endpoint.operation if target.endpoint else ""
    decision = _decision(mode, source, ignored, True, operation, state, identifier, override)
    return _refuse_path(decision) if target.is_ambiguous else decision


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
        # Nobody knows what was meant, so it may make the mode stricter and never weaker.
        return (*_stricter(base, source, wanted), Ignored.INVALID)
    if override is Override.TIGHTEN_ONLY and wanted < base:
        return base, source, Ignored.TIGHTEN_ONLY
    return wanted, Source.HEADER, Ignored.NOT_IGNORED


def _stricter(base: Mode, source: Source, wanted: Mode | None) -> tuple[Mode, Source]:
    if wanted is not None and wanted > base:
        return wanted, Source.HEADER
    return base, source


def _best_identifier(
    descriptor: DecisionInput, accept: tuple[str, ...], endpoint: Endpoint | None
) -> tuple[str, UserState]:
    found: list[tuple[str, UserState]] = []
    for identifier in _places(accept, endpoint):
        state = descriptor.user if identifier == USER else descriptor.safety_identifier
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


def _refuse_key(credential: Credential) -> Decision:
    refusal = denial.for_credential(credential)
    summary = "Denied: " + _KEY_REFUSED[credential] + "."
    explanation = Explanation(
        None, None, Ignored.NOT_IGNORED, False, "", UserState.UNKNOWN, "", summary
    )
    return Decision(refusal, False, (), explanation)


@lru_cache(maxsize=4096)
def _refuse_path(decision: Decision) -> Decision:
    summary = "Denied: servers may read the path as different endpoints."
    explanation = replace(decision.explanation, summary=summary)
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
    refusal: Denial | None = None
    if offends and mode is Mode.ENFORCE:
        refusal = denial.for_user_state(state)
    flags = (BLOCKED,) * offends + (INVALID_OVERRIDE,) * (ignored is Ignored.INVALID)
    words = (
        _outcome(refusal, offends, in_scope, mode, state, identifier),
        _reason(mode, source),
        _ignored_words(ignored, override),
    )
    summary = " ".join(filter(None, words))
    explanation = Explanation(
        mode, source, ignored, in_scope, operation, state, identifier, summary
    )
    return Decision(refusal, offends and refusal is None, flags, explanation)


_STATE_WORDS = {
    UserState.UNKNOWN: "could not be known",
    UserState.VALID: "names an end user",
    UserState.ABSENT: "is absent",
    UserState.EMPTY: "is null, false, 0 or an empty string",
    UserState.BLANK: "holds only white space, control characters or others that show nothing",
    UserState.NOT_STRING: "is of the wrong type: it has to be a string",
    UserState.TOO_LONG: f"is too long: OpenAI takes up to {MAX_SAFETY_IDENTIFIER} characters",
    UserState.DUPLICATE: "stands there several times",
    UserState.NOT_JSON: (
        "cannot be read: the body is not well-formed JSON, or its Content-Type lets a server "
        "read it as something else"
    ),
    UserState.NOT_OBJECT: "cannot be there: the body is JSON but not an object",
    UserState.TOO_COMPLEX: "cannot be read: the body is nested too deeply or has too many strings",
    UserState.BAD_FORM: "cannot be read: the body is not a form that every server reads alike",
    UserState.BAD_ENCODING: "cannot be read: the body does not decompress, or can be read without",
    UserState.UNSUPPORTED_ENCODING: "cannot be read: the body's Content-Encoding is not known",
    UserState.TOO_LARGE: "cannot be read: the body is too large",
}
_NO_PLACE = "no field of this endpoint is one that the API key accepts as an end user"
_MODE_WORDS = {Mode.OFF: "off", Mode.AUDIT: "audit", Mode.ENFORCE: "enforce"}
_SOURCE_WORDS = {
    Source.HEADER: "the request's x-usagepanda-enforce-user-ids header",
    Source.KEY: "the API key's setting",
    Source.DEFAULT: "the server's default",
    Source.ROUTE: "the route's setting",
}
_KEY_REFUSED = {
    Credential.GIVEN: "the API key is not valid here",
    Credential.MISSING: "no API key was given",
    Credential.CONFLICTING: "two different API keys were given",
}


def _outcome(
    refusal: Denial | None,
    offends: bool,
    in_scope: bool,
    mode: Mode,
    state: UserState,
    identifier: str,
) -> str:
    if not in_scope:
        return "Allowed: this call is out of scope."
    field = f"the field {identifier} {_STATE_WORDS[state]}" if identifier else _NO_PLACE
    if refusal is not None:
        return f"Denied: {field}."
    if offends:
        return f"Allowed, but enforcing would deny it: {field}."
    if state is UserState.VALID or not identifier:
        return f"Allowed: {field}."
    return f"Allowed: {field}, and may be."


def _reason(mode: Mode, source: Source) -> str:
    return f'Enforce User IDs is "{_MODE_WORDS[mode]}" by {_SOURCE_WORDS[source]}.'


def _ignored_words(ignored: Ignored, override: Override) -> str:
    if ignored is Ignored.LOCKED:
        return "The override header was ignored: the setting is locked."
    if ignored is Ignored.TIGHTEN_ONLY:
        return "The override header was ignored: it may only switch enforcement on."
    if ignored is Ignored.INVALID:
        locked = ", and the setting is locked" if override is Override.LOCKED else ""
        return f"The override header weakens nothing: it is not one clear true or false{locked}."
    return ""
