"""`doctor`: checks a deployment as it runs, one thing after the other, and says how to fix each.

Unlike `config check`, it asks the other parts of the deployment, which may be silent: every check
has a deadline, and those after it run all the same.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterable

import click

from policyd.command.config_checks import Check
from policyd.errors import PolicydError

_DEADLINE = 15.0
"""Seconds that a check may take."""
_FAILED = 1
"""The exit status where a check has failed."""


class _Silent(Exception):
    """A check did not end in time."""


class Doubt(str):
    """A warning: what a check found that works today but may not last, and what to do about it."""

    __slots__ = ()


def examine(checks: Iterable[Check], *, as_json: bool, deadline: float = _DEADLINE) -> None:
    """Print what each check finds, as soon as it does, and exit with 1 where one has failed."""
    found = []
    for one in checks:
        result, text = _found(one, deadline)
        found.append({"subject": one.subject, "result": result, "found": text})
        if not as_json:
            is_named = text.startswith(one.subject.split()[0])
            click.echo(f"{result:9}{text if is_named else f'{one.subject}: {text}'}")
    failed = sum(one["result"] == "failed" for one in found)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": found}, ensure_ascii=False))
    if failed:
        sys.exit(_FAILED)


def _found(one: Check, deadline: float) -> tuple[str, str]:
    try:
        text = _within(deadline, one.look)
    except (PolicydError, OSError) as error:
        return "failed", str(error)
    except _Silent:
        return "failed", f"no answer within {deadline:g} s: see what hangs, by the other checks"
    return ("warning" if isinstance(text, Doubt) else "ok"), text


def _within(seconds: float, look: Callable[[], str]) -> str:
    """What `look` returns or raises. After `seconds`, raises _Silent and abandons the thread."""
    results: list[str] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(look())
        except Exception as error:  # noqa: BLE001  # It is raised below.
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _Silent
    return results[0]
