"""The explanation of a decision in one or two English sentences, for operators.

They name the identifier, the mode in force and the setting that it came from, never a value.
"""

from policyd.engine.model import MAX_TOLD, Explanation, Result, cut
from policyd.engine.places import MAX_SAFETY_IDENTIFIER
from policyd.engine.policy import Table
from policyd.engine.states import Credential, Ignored, Mode, Override, Source, UserState

AMBIGUOUS_PATH = "Denied: servers may read the path as different endpoints."

STATE_WORDS = {
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
_MODE_WORDS = {Mode.OFF: "off", Mode.AUDIT: "audit", Mode.ENFORCE: "enforce"}
_SOURCE_WORDS = {
    Source.HEADER: "the request's header",
    Source.KEY: "the API key's setting",
    Source.DEFAULT: "the server's default",
    Source.ROUTE: "the route's setting",
}
_KEY_DENIED = {
    Credential.GIVEN: "the API key is not valid here",
    Credential.MISSING: "no API key was given",
    Credential.CONFLICTING: "two different API keys were given",
}


def place_words(place: str) -> str:
    """The place of an end user, in words."""
    kind, colon, name = place.partition(":")
    return f"the {kind} {name}" if colon else f"the field {place}"


def for_credential(credential: Credential) -> str:
    """Why a request with no API key in force is denied."""
    return f"Denied: {_KEY_DENIED[credential]}."


def of(table: Table, why: Explanation, results: tuple[Result, ...], *, is_denied: bool) -> str:
    """What was decided, in words: by which policy and setting, and what was ignored."""
    first = next(one for one in results if one.policy == table.original.name)
    deciding = [one for one in results if one.has_failed or one.violation]
    if is_denied:
        deciding = [one for one in deciding if one.mode is Mode.ENFORCE]
    settings = [_setting(table, one) for one in deciding or (first,)]
    ignored = [_ignored(table, one) for one in results]
    outcome = _outcome(table, why, deciding, is_denied=is_denied)
    return " ".join(filter(None, (outcome, *settings, *ignored)))


def _outcome(table: Table, why: Explanation, deciding: list[Result], *, is_denied: bool) -> str:
    if not why.in_scope:
        return "Allowed: this call is out of scope."
    words = "; ".join(_finding(one) for one in deciding)
    if is_denied:
        return f"Denied: {words}."
    if any(one.violation for one in deciding):
        return f"Allowed, but enforcing would deny it: {words}."
    observe = table.original.observe
    return f"Allowed: {observe(why.identifier, why.user_state)}." if observe else "Allowed."


def _finding(one: Result) -> str:
    if one.violation:
        return one.violation.words
    return f"the policy {one.policy} could not judge it"


def _setting(table: Table, one: Result) -> str:
    policy = table.by_name.get(one.policy)
    title = policy.title if policy else one.policy
    # A list of models may be long, and each model that is asked for makes a summary of its own.
    value = f" with {cut(one.value, MAX_TOLD)}" if one.value else ""
    source = _SOURCE_WORDS[one.source]
    if one.source is Source.HEADER and policy:
        source = f"the request's {policy.header} header"
    return f'{title} is "{_MODE_WORDS[one.mode]}"{value} by {source}.'


def _ignored(table: Table, one: Result) -> str:
    if one.ignored is Ignored.NOT_IGNORED:
        return ""
    policy = table.by_name[one.policy]
    header = "The override header" + ("" if policy.is_original else f" of {policy.title}")
    if one.ignored is Ignored.LOCKED:
        return f"{header} was ignored: the setting is locked."
    if one.ignored is Ignored.TIGHTEN_ONLY:
        return f"{header} was ignored: it may only switch enforcement on."
    locked = ", and the setting is locked" if one.override is Override.LOCKED else ""
    return f"{header} weakens nothing: it is not one clear {policy.kind.header_usage}{locked}."
