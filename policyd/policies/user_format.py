"""User ID Format: what a user has to look like, where a request names one.

If several values stand in the places that are looked at, each of them has to keep the rules, as
servers differ in which of them they read.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from policyd.engine.kinds import WithoutHeader
from policyd.engine.model import Violation
from policyd.engine.places import EndUser
from policyd.engine.policy import Attributes, Need, Policy
from policyd.engine.states import UserState

MAX_LENGTH = 1000
"""The largest bound, in characters. Only the beginning of a longer user is known."""
_MAX_PATTERN = 500
"""Characters of a pattern."""
_MAX_MEMORY = 2**20
"""Bytes that a compiled pattern may take."""
_NUMBER = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)
_PLACEHOLDERS = frozenset(
    {"user", "test", "anonymous", "null", "none", "undefined", "[object object]"}
)
_TEMPLATE = re.compile(r"\{\{[^{}]*+\}\}")


class _Rules(NamedTuple):
    """The rules of a setting, each of which a user must keep."""

    least: int | None = None
    most: int | None = None
    pattern: Any = None
    """An expression of RE2, which matches in linear time."""
    no_email: bool = False
    no_placeholder: bool = False


class UserFormat(WithoutHeader):
    """Rules with commas between them. `pattern` is the last, as it may hold commas itself."""

    usage = "off, audit:RULE,… or enforce:RULE,…"
    value_usage = (
        "min=N, max=N, no_email, no_placeholder and pattern=RE2, with commas between them, "
        "pattern last"
    )
    example = "min=3,max=64,no_email"

    def canonical(self, text: str) -> str:
        """The rules in one order, each once."""
        found = _split(text)
        least, most = _length(found, "min"), _length(found, "max")
        if least and most and least > most:
            raise ValueError(f"min={least} is above max={most}")
        if "pattern" in found:
            _compiled(found["pattern"])
        order = ("min", "max", "no_email", "no_placeholder", "pattern")
        kept = [(name, found[name]) for name in order if name in found]
        return ",".join(f"{name}={value}" if value else name for name, value in kept)

    def parse(self, value: str) -> _Rules:
        """The rules, the pattern compiled."""
        found = _split(self.canonical(value))
        pattern = _compiled(found["pattern"]) if "pattern" in found else None
        bounds = _length(found, "min"), _length(found, "max")
        return _Rules(*bounds, pattern, "no_email" in found, "no_placeholder" in found)


def _split(text: str) -> dict[str, str]:
    """The values of the rules by name; empty for a rule that has none."""
    rest, found = text.strip(), dict[str, str]()
    while rest:
        if rest.startswith("pattern="):
            part, rest = rest, ""
        else:
            part, _, rest = rest.partition(",")
        name, equals, value = part.strip().partition("=")
        if name not in _TAKES_VALUE or bool(equals) != _TAKES_VALUE[name]:
            known = "min=N, max=N, no_email, no_placeholder, pattern=RE2"
            raise ValueError(f"there is no rule {part[:64]!r}: the rules are {known}")
        if name in found:
            raise ValueError(f"the rule {name} is given twice: give it once")
        found[name] = value
        rest = rest.lstrip()
    if not found:
        raise ValueError("there is no rule: give at least one, such as no_placeholder")
    return found


_TAKES_VALUE = {
    "min": True,
    "max": True,
    "pattern": True,
    "no_email": False,
    "no_placeholder": False,
}


def _length(found: dict[str, str], name: str) -> int | None:
    if name not in found:
        return None
    if not _NUMBER.fullmatch(found[name]) or int(found[name]) > MAX_LENGTH:
        raise ValueError(
            f"{name} is a whole number from 1 to {MAX_LENGTH}, not {found[name][:64]!r}"
        )
    return int(found[name])


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    # Imported only where a pattern is set: policyd.client does without the package.
    import re2

    # The pattern appears in logs and explanations, so it must not break a line.
    if not pattern or len(pattern) > _MAX_PATTERN or not pattern.isprintable():
        raise ValueError(f"pattern has 1 to {_MAX_PATTERN} printable characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"pattern is no expression of RE2: {text[:200]}") from None


def _decide(attributes: Attributes, rules: _Rules) -> Violation | None:
    for user in attributes.named:
        if broken := _broken_by(user, rules):
            verb, rest = broken.split(" ", 1)
            message = f"Config set to block user fields that {broken}"
            return Violation(message, f"the user {_SINGULAR[verb]} {rest}")
    return None


_SINGULAR = {"have": "has", "hold": "holds", "are": "is", "do": "does"}


def _broken_by(user: EndUser, rules: _Rules) -> str:
    """The first rule that a value of this end user breaks, as _broken() says it."""
    if user.state is UserState.DUPLICATE:
        return "hold more values than can be checked"
    if user.value is None:
        return ""
    for value in (user.value, *user.further_values):
        if broken := _broken(value, rules):
            return broken
    return ""


def _broken(user: str, rules: _Rules) -> str:
    """The first rule that a user breaks, in words that follow "users that". Empty: none."""
    if rules.least and len(user) < rules.least:
        return f"have fewer than {rules.least} characters"
    if (rules.most and len(user) > rules.most) or len(user) > MAX_LENGTH:
        return f"have more than {rules.most or MAX_LENGTH} characters"
    if rules.no_email and _is_email(user):
        return "hold an e-mail address"
    if rules.no_placeholder and _is_placeholder(user):
        return "are a placeholder"
    if rules.pattern is not None and not rules.pattern.fullmatch(user):
        return "do not match the pattern that is set"
    return ""


def _is_email(user: str) -> bool:
    """Whether it holds something like name@host.domain."""
    return any(map(_is_address, user.split()))


def _is_address(word: str) -> bool:
    # A name in a social network may have an @ before it, too.
    _, *hosts = word.strip("<>(),;\"'@").split("@")
    return any("." in host.strip(".") for host in hosts)


def _is_placeholder(user: str) -> bool:
    word = user.strip().casefold()
    return word in _PLACEHOLDERS or _TEMPLATE.search(word) is not None


POLICY = Policy(
    name="user_format",
    order=40,
    title="User ID Format",
    hint="Where a request names a user, the user must keep these rules.",
    kind=UserFormat(),
    needs=(Need.END_USER_VALUE,),
    subject="user field",
    decide=_decide,
    tooltip="The user of this request did not have the form that its key asks for",
)
