"""The explanation of a decision in one or two English sentences, for operators.

They name the identifier, the mode in force and the setting that it came from, never a value.
"""

from policyd.engine.model import (
    MAX_SAFETY_IDENTIFIER,
    Credential,
    Explanation,
    Ignored,
    Mode,
    Override,
    Source,
    UserState,
)

AMBIGUOUS_PATH = "Denied: servers may read the path as different endpoints."

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
_KEY_DENIED = {
    Credential.GIVEN: "the API key is not valid here",
    Credential.MISSING: "no API key was given",
    Credential.CONFLICTING: "two different API keys were given",
}


def for_credential(credential: Credential) -> str:
    """Why a request with no API key in force is denied."""
    return f"Denied: {_KEY_DENIED[credential]}."


def of(why: Explanation, override: Override, *, is_denied: bool, would_deny: bool) -> str:
    """What `why` explains, in words: what was decided, by which setting, and what was ignored."""
    outcome = _outcome(why, is_denied=is_denied, would_deny=would_deny)
    setting = _setting(why.mode, why.source) if why.mode and why.source else ""
    return " ".join(filter(None, (outcome, setting, _ignored(why.ignored, override))))


def _outcome(why: Explanation, *, is_denied: bool, would_deny: bool) -> str:
    if not why.in_scope:
        return "Allowed: this call is out of scope."
    state = why.user_state
    field = f"the field {why.identifier} {_STATE_WORDS[state]}" if why.identifier else _NO_PLACE
    if is_denied:
        return f"Denied: {field}."
    if would_deny:
        return f"Allowed, but enforcing would deny it: {field}."
    if state is UserState.VALID or not why.identifier:
        return f"Allowed: {field}."
    return f"Allowed: {field}, and may be."


def _setting(mode: Mode, source: Source) -> str:
    return f'Enforce User IDs is "{_MODE_WORDS[mode]}" by {_SOURCE_WORDS[source]}.'


def _ignored(ignored: Ignored, override: Override) -> str:
    if ignored is Ignored.LOCKED:
        return "The override header was ignored: the setting is locked."
    if ignored is Ignored.TIGHTEN_ONLY:
        return "The override header was ignored: it may only switch enforcement on."
    if ignored is Ignored.INVALID:
        locked = ", and the setting is locked" if override is Override.LOCKED else ""
        return f"The override header weakens nothing: it is not one clear true or false{locked}."
    return ""
