"""The tree of errors is drawn whole, and each error has a status or a reason for having none."""

import re
from collections.abc import Iterator

from policyd import errors
from policyd.client.admin import CallFailed
from policyd.client.statuses import Failed
from policyd.errors import PolicydError
from policyd.services.errors import TABLE
from policyd.store.copying import CopyRefused
from policyd.store.sqlite_files import BackupRefused

NOT_REPORTED = {
    errors.SnapshotUnusable: "the start handles it, and logs the reason",
    errors.SettingsError: "it ends a start",
    errors.NoRoom: "it ends a start, or waits for room",
    errors.CannotListen: "it ends a start",
    errors.NoDecision: "clients raise it",
    CallFailed: "clients raise it",
    Failed: "clients raise it",
    BackupRefused: "policyd db prints it",
    CopyRefused: "policyd db prints it",
}
"""Errors that no servicer raises, and where they end."""


def tree(top: type[PolicydError] = PolicydError) -> Iterator[type[PolicydError]]:
    for error in top.__subclasses__():
        # Tests have errors of their own.
        if error.__module__.startswith("policyd."):
            yield error
            yield from tree(error)


def test_the_tree_is_drawn() -> None:
    """The docstring of errors.py names every error, and each stands below its base."""
    drawn = re.findall(r"^([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    assert {name for _, name in drawn} == {error.__name__ for error in tree()}
    bases = {}
    above = "PolicydError"
    for indent, name in drawn:
        bases[name] = above if indent else "PolicydError"
        above = above if indent else name
    assert bases == {error.__name__: error.__base__.__name__ for error in tree() if error.__base__}


def test_each_error_has_a_status() -> None:
    """A new error must get a status in TABLE, or a reason here."""
    assert {*TABLE} | {*NOT_REPORTED} == {*tree()}
    assert not {*TABLE} & {*NOT_REPORTED}
