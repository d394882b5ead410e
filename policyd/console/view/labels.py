"""The console's labels for what the log and the settings hold, and how it writes numbers.

Each table that is keyed by an enumeration has a label for every member; a test checks that.
"""

from collections.abc import Sequence
from datetime import datetime

from policyd.decision_log.record import ABSENT, INVALID, Ending, Record, Verdict
from policyd.decision_log.refused_key import OTHERS, RefusedKeyReason
from policyd.engine.decision import INVALID_OVERRIDE
from policyd.engine.states import Ignored, Mode, ModelState, Override, Source
from policyd.keys.audit import Action
from policyd.policies import TABLE
from policyd.trial import Finding

UNKNOWN = "\N{EM DASH}"
"""Shown in place of a missing value."""

VERDICTS = {
    Verdict.ALLOWED: "Allowed",
    Verdict.WOULD_DENY: "Would be blocked",
    Verdict.DENIED: "Blocked",
}
MODES = {
    Mode.OFF: ("Off", "Nothing is checked."),
    Mode.AUDIT: ("Audit", "What violates it passes, flagged as “would be blocked”."),
    Mode.ENFORCE: (
        "Enforce",
        "What violates it is blocked with a 422, and never reaches the provider.",
    ),
}
OVERRIDES = {
    Override.ANY: ("Any request", "The header wins both ways."),
    Override.TIGHTEN_ONLY: ("Only to tighten", "The header can only make the setting stricter."),
    Override.LOCKED: ("No request", "The header is ignored, and the log shows that."),
}
IDENTIFIERS = {
    "user": "The body's top-level field user.",
    "safety_identifier": "OpenAI's successor to user, up to 128 characters.",
    "metadata.user_id": "Anthropic's, on messages, which are in scope for keys that accept it.",
    "user_security_context.end_user_id": "Azure's, on chat completions.",
}
"""The places in a body that a key can accept."""
SOURCES = {
    Source.HEADER: "The request's header",
    Source.KEY: "The API key",
    Source.DEFAULT: "The server's default",
    Source.ROUTE: "The gateway's setting for the route",
}
IGNORED = {
    Ignored.NOT_IGNORED: "No",
    Ignored.LOCKED: "Yes, as the setting is locked",
    Ignored.TIGHTEN_ONLY: "Yes, as it may only tighten the setting",
    Ignored.INVALID: "Yes, as it was not valid",
}
MODEL_STATES = {
    ModelState.UNKNOWN: "",
    ModelState.GIVEN: "",
    ModelState.ABSENT: "Not named",
    ModelState.NOT_STRING: "Not a string",
    ModelState.CONFLICTING: "Two that differ",
    ModelState.TOO_LONG: "Too long",
}
"""Why a request's model is not known; empty where it is, or where its state is not known."""
ENDINGS = {
    Ending.UNKNOWN: "Unknown",
    Ending.COMPLETE: "Complete",
    Ending.CLIENT_LEFT: "The client left before the end",
    Ending.UPSTREAM_BROKE: "The provider broke off",
    Ending.NO_ANSWER: "The provider gave no answer",
}
REASONS = {
    RefusedKeyReason.MISSING: "No key",
    RefusedKeyReason.UNKNOWN: "Not valid",
    RefusedKeyReason.CONFLICTING: "Two keys",
}
ACTIONS = {
    Action.KEY_CREATE: "Key created",
    Action.KEY_UPDATE: "Key changed",
    Action.KEY_ROTATE: "Key rotated",
    Action.KEY_REVOKE: "Key revoked",
    Action.DEFAULTS_UPDATE: "Defaults changed",
    Action.SIGN_IN: "Signed in",
    Action.SIGN_IN_FAILED: "Sign-in failed",
    Action.SIGN_OUT: "Signed out",
    Action.PASSWORD_SET: "Password set",
    Action.LOG_EXPORT: "Log exported",
    Action.LOG_RETIRE: "Log retired",
}
"""What administrators do, as the audit trail names it."""
FINDINGS = {
    Finding.KEPT: ("Kept", "v1"),
    Finding.VIOLATED: ("Violated", "v3"),
    Finding.FAILED: ("Failed", "v3"),
    Finding.OFF: ("Off", ""),
    Finding.OUT_OF_SCOPE: ("Does not apply", ""),
}
"""What a policy found of a request that is tried, and the CSS class of its colour."""
POLICIES = {policy.name: policy.title for policy in TABLE.policies}
FLAGS = {policy.flag: policy.title for policy in TABLE.policies} | {
    INVALID_OVERRIDE: "Invalid override"
}


def verdict_label(record: Record) -> str:
    """The label of a verdict. "Blocked" means denied by a policy: older versions of policyd logged
    refused keys as well."""
    return "Key refused" if record.is_key_refused else VERDICTS[record.verdict]


def source_label(source: str) -> str:
    """The label of the address that requests came from."""
    return {"": "Address not known", OTHERS: "All other addresses"}.get(source, source)


def more(values: Sequence[str]) -> str:
    """How many values follow the first."""
    return f" and {number(len(values) - 1)} more" if len(values) > 1 else ""


def label(name: str) -> str:
    """The label of an identifier of the log: chat_completion is "Chat completion"."""
    return name.replace("_", " ").capitalize()


def number(value: int | None) -> str:
    """A count, with commas between thousands."""
    return UNKNOWN if value is None else f"{value:,}"


def short(value: int | None) -> str:
    """A count in three digits where it is large: 1.23M."""
    if value is None or value < 100_000:
        return number(value)
    unit, sign = next(one for one in _UNITS if value >= 0.9995 * one[0])
    scaled = value / unit
    digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:.{digits}f}{sign}"


_UNITS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def counted(value: int | None) -> str:
    """A number that policies judge, as the log has it; empty where it is not known."""
    if value is None:
        return ""
    return {ABSENT: "Not given", INVALID: "Not a number"}.get(value, number(value))


def money(nano: int | None, digits: int = 4) -> str:
    """Billionths of a dollar, as dollars: to the cent, or to `digits` where that is too coarse."""
    if nano is None:
        return UNKNOWN
    if nano >= 1e9 or nano == 0:
        return f"${nano / 1e9:,.2f}"
    least = 10**-digits
    return f"<${least:.{digits}f}" if nano / 1e9 < least else f"${nano / 1e9:.{digits}f}"


def duration(microseconds: int | None) -> str:
    """Microseconds, in the unit that fits."""
    if microseconds is None:
        return UNKNOWN
    if microseconds < 10_000:
        return f"{microseconds / 1000:.1f} ms"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.0f} ms"
    return f"{microseconds / 1e6:.1f} s"


def share(part: int, rest: int) -> str:
    """`part` of `part + rest` in per cent; 100% and 0% only where they are exact."""
    whole = part + rest
    if not whole:
        return UNKNOWN
    percent = 100 * part / whole
    if part and rest:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f}%".replace(".0%", "%")


def moment(at: datetime | None) -> str:
    """A point in time, to the second."""
    return at.strftime("%Y-%m-%d %H:%M:%S") if at else UNKNOWN


def running(workers: int, gateways: int) -> str:
    """What decides requests: "2 workers", or "2 workers and 3 gateways"."""
    told = times(workers, "worker")
    return f"{told} and {times(gateways, 'gateway')}" if gateways else told


def times(count: int, noun: str) -> str:
    """A count and its noun: 1 worker, 2 workers."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
