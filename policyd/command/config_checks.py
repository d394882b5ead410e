"""`config check`: what a server would find wrong, found without starting it.

A server also makes these checks of its files before it replaces its processes at SIGHUP.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from policyd.command.address import Address, check_free
from policyd.command.tls_files import check_pair
from policyd.errors import PolicydError

_WRONG = 2
"""The exit status where a setting, or a file that it names, cannot be used."""


running = click.option(
    "--running",
    "is_running",
    is_flag=True,
    help="The server runs already, as before a SIGHUP: its ports may be taken.",
)
"""The option of `config check` for a server that runs."""


class Check(NamedTuple):
    """One thing to look at."""

    subject: str
    """The setting, and what it names: "--tls-cert cert.pem"."""
    look: Callable[[], str]
    """Returns what it found, in words. Raises PolicydError with what is wrong, and the fix."""


def certificate(path: Path | None, key: Path | None) -> Iterator[Check]:
    """Whether a server's certificate and its key can be used, where it has them."""
    if path and key:
        yield Check(f"--tls-cert {path}", partial(_pair, path, key))


def _pair(path: Path, key: Path) -> str:
    check_pair(path, key)
    return f"it and its key {key} can be used"


def free(listeners: Mapping[str, Address], program: str) -> Iterator[Check]:
    """Whether `program` can listen at its addresses, by the setting that names each."""
    for flag, address in listeners.items():
        look = partial(_free, address, flag, program)
        yield Check(f"{flag} {address}", look)


def _free(address: Address, flag: str, program: str) -> str:
    check_free(address, flag)
    return f"{program} can listen there"


def look_at(checks: Iterable[Check]) -> None:
    """Raises PolicydError at the first check that finds something wrong."""
    for one in checks:
        one.look()


def report(checks: Iterable[Check], *, as_json: bool) -> None:
    """Print what each check finds, and exit with 2 where one finds something wrong."""
    found = [_found(one) for one in checks]
    problems = sum(not one["ok"] for one in found)
    if as_json:
        click.echo(json.dumps({"ok": not problems, "checks": found}, ensure_ascii=False))
    else:
        for one in found:
            click.echo(_line(**one))
        click.echo(_summary(problems), err=bool(problems))
    if problems:
        sys.exit(_WRONG)


def _found(one: Check) -> dict[str, Any]:
    try:
        return {"subject": one.subject, "ok": True, "found": one.look()}
    except PolicydError as error:
        return {"subject": one.subject, "ok": False, "found": str(error)}


def _line(subject: str, ok: bool, found: str) -> str:
    # Most errors begin with the setting.
    is_named = not ok and found.startswith(subject.split()[0])
    return f"{'ok' if ok else 'wrong':6} {found if is_named else f'{subject}: {found}'}"


def _summary(problems: int) -> str:
    if not problems:
        return "Nothing is wrong."
    return f"{problems} {'thing is' if problems == 1 else 'things are'} wrong: see above."
