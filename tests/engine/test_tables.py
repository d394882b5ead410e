"""Each table that is keyed by an enumeration has all of its members."""

import importlib
import pkgutil
from collections.abc import Iterator
from enum import Enum
from types import ModuleType

import pytest

import gateway
import policyd
from policyd.decision_log import record
from policyd.decision_log.record import FLAG_SETS
from policyd.engine import model
from policyd.engine.model import Flag
from policyd.v1 import admin_pb2, policy_pb2

PARTIAL = {
    # What is not in them is looked up with something else at hand, which their users say.
    "policyd.engine.denial._UNREADABLE": "states of a body that was read are one case",
    "policyd.services.ext_authz._UNREAD": "a body that came whole has words already",
}


def modules() -> Iterator[ModuleType]:
    for package in (policyd, gateway):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.startswith(("policyd.v1", "policyd.store.migrations.env")):
                yield importlib.import_module(found.name)


def tables() -> dict[str, dict[Enum, object]]:
    """The module-level tables of all our code whose keys are members of one enumeration."""
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            is_table = isinstance(value, dict) and len(value) > 0
            if is_table and all(isinstance(key, Enum) for key in value):
                found[f"{module.__name__}.{name}"] = value
    return found


TABLES = tables()


def test_there_are_tables() -> None:
    """They are found, those of the console among them, and so is each exception."""
    assert "policyd.console.view.labels.SOURCES" in TABLES
    assert PARTIAL.keys() <= TABLES.keys()


@pytest.mark.parametrize("name", sorted(TABLES.keys() - PARTIAL.keys()))
def test_a_table_lacks_nothing(name: str) -> None:
    """A member that is added is noticed here, and not by a page that fails."""
    table = TABLES[name]
    [kind] = {type(key) for key in table}
    assert set(table) == set(kind)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (model.Mode, policy_pb2.EnforceMode),
        (model.Override, admin_pb2.OverridePolicy),
        (model.Source, policy_pb2.SettingSource),
        (model.Ignored, policy_pb2.OverrideIgnored),
        (model.UserState, policy_pb2.UserState),
        (record.Ending, policy_pb2.Ending),
        (record.Verdict, admin_pb2.Verdict),
    ],
)
def test_numbers_of_the_protos(ours: type[Enum], theirs: object) -> None:
    """The model's enumerations have the members and numbers of the protos."""
    names = dict(theirs.items())  # type: ignore[attr-defined]  # generated
    [unspecified] = (name for name, number in names.items() if number == 0)
    prefix = unspecified.removesuffix("UNSPECIFIED")
    given = {name.removeprefix(prefix): number for name, number in names.items() if number}
    assert given == {one.name: one.value for one in ours if one.value}


def test_flags_have_words() -> None:
    """The console has words for each flag that a decision can carry."""
    words = importlib.import_module("policyd.console.view.labels")
    decision = importlib.import_module("policyd.engine.decision")
    given = {value.type for value in vars(decision).values() if isinstance(value, Flag)}
    assert given == words.FLAGS.keys() == {flag for one in FLAG_SETS for flag in one.split(",")}
    assert set(model.IDENTIFIERS) == words.IDENTIFIERS.keys()
