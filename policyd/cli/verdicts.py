"""A decision and the verdict of every policy, for people and as JSON values."""

from typing import Any

from policyd.cli import setting_words
from policyd.cli.setting_words import word
from policyd.cli.terminal import printable
from policyd.engine.model import Decision, Explanation, Result
from policyd.engine.settings import KeySettings
from policyd.policies import TABLE
from policyd.trial import finding


def as_dict(decision: Decision, key: KeySettings | None) -> dict[str, Any]:
    """The decision as JSON values."""
    why = decision.explanation
    denial = decision.denial
    return {
        "decision": "deny" if denial else "allow",
        "would_deny": decision.would_deny,
        "key_id": key.key_id if key else None,
        "mode": why.mode.name.lower() if why.mode else None,
        "source": why.source.name.lower() if why.source else None,
        "override_ignored": why.ignored.name.lower() if why.ignored else None,
        "in_scope": why.in_scope,
        "operation": why.operation or None,
        "user_state": why.user_state.name.lower(),
        "identifier": why.identifier or None,
        "flags": [flag.type for flag in decision.flags],
        "summary": why.summary,
        "policies": [_verdict(one, why) for one in decision.results],
        "denial": None
        if denial is None
        else {
            "http_status": denial.status,
            "headers": dict(denial.headers),
            "body": denial.body.decode(),
        },
    }


def _verdict(result: Result, why: Explanation) -> dict[str, Any]:
    violation = result.violation
    return {
        "policy": result.policy,
        "mode": word(result.mode),
        "value": result.value,
        "source": result.source.name.lower(),
        "override": word(result.override),
        "override_ignored": result.ignored.name.lower() if result.ignored else None,
        "verdict": finding(result, why).value,
        "violation": violation.words if violation else None,
        "message": violation.message if violation else None,
    }


def as_text(decision: Decision, key: KeySettings | None) -> str:
    """The decision for people."""
    shown = as_dict(decision, key)
    lines = [decision.explanation.summary, ""]
    for name in ("decision", "key_id", "mode", "source", "operation", "user_state"):
        lines.append(f"{name.replace('_', ' '):12}{shown[name] or '-'}")
    lines.append(f"{'flags':12}{', '.join(shown['flags']) or '-'}")
    if decision.denial:
        lines.append(f"{'response':12}{decision.denial.status} {decision.denial.body.decode()}")
    if decision.results:
        lines += ["", *_table(decision)]
    return "\n".join(printable(line) for line in lines)


def _table(decision: Decision) -> list[str]:
    """A line for each policy, set or not."""
    results = {one.policy: one for one in decision.results}
    names = dict.fromkeys((*TABLE.by_name, *results))
    width = max(map(len, names)) + 2
    return [f"{name:{width}}{_told(results.get(name), decision.explanation)}" for name in names]


def _told(result: Result | None, why: Explanation) -> str:
    if result is None:
        return "not set"
    told = finding(result, why).value.replace("_", " ")
    if result.violation:
        told += f": {result.violation.words}"
    return setting_words.finding(result, "" if told == "off" else told)
