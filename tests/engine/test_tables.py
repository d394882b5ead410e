"""Each table that is keyed by an enumeration has all of its members."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import gateway
import policyd
from policyd.cli import remote
from policyd.console.view import labels
from policyd.decision_log import record
from policyd.decision_log.record import Verdict
from policyd.engine import places, states
from policyd.engine.decision import INVALID_OVERRIDE
from policyd.engine.states import Mode, UserState
from policyd.policies import TABLE
from policyd.services import key_messages
from policyd.v1 import admin_pb2, local_pb2, policy_pb2
from tests.support import conformance

TEMPLATES = Path(labels.__file__).parents[1] / "templates"

PARTIAL = {
    # Members that are missing here are handled elsewhere, which the table's users document.
    "policyd.asgi.connections._DEADLINES": "a body has a pace, and an answer takes its time",
    "policyd.cli.applied._VERBS": "a declaration changes a key otherwise, which is one word",
    "policyd.engine.denial._UNREADABLE": "states of a body that was read are one case",
    "policyd.services.key_messages._ACTIONS": "a declaration changes, and does nothing else",
    "policyd.services.ext_authz._UNREAD": "a body that came whole has words already",
}


def modules() -> Iterator[ModuleType]:
    for package in (policyd, gateway):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.startswith(("policyd.v1", "policyd.store.migrations.env")):
                yield importlib.import_module(found.name)


MODULES = list(modules())
ENUMERATIONS = {
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Enum) and value.__module__ == module.__name__
}


def tables() -> dict[str, dict[Enum, object]]:
    """The module-level tables of our code whose keys are members of one enumeration."""
    found = {}
    for module in MODULES:
        for name, value in vars(module).items():
            is_table = isinstance(value, dict) and len(value) > 0
            if is_table and all(isinstance(key, Enum) for key in value):
                found[f"{module.__name__}.{name}"] = value
    return found


TABLES = tables()


def test_there_are_tables() -> None:
    """The search finds tables, the console's among them, and each exception."""
    assert "policyd.console.view.labels.SOURCES" in TABLES
    assert PARTIAL.keys() <= TABLES.keys()


@pytest.mark.parametrize("name", sorted(TABLES.keys() - PARTIAL.keys()))
def test_a_table_lacks_nothing(name: str) -> None:
    """A member that is added is noticed here, and not by a page that fails."""
    table = TABLES[name]
    [kind] = {type(key) for key in table}
    assert set(table) == set(kind)


def named(display: ast.Dict) -> set[str]:
    """The names before the dots of keys such as State.HEAD."""
    return {
        key.value.id if isinstance(key, ast.Attribute) and isinstance(key.value, ast.Name) else ""
        for key in display.keys
    }


def inner_tables(module: ModuleType) -> Iterator[int]:
    """The lines of tables in functions and classes whose keys are members of enumerations."""
    kinds = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value in ENUMERATIONS
    }
    if not kinds:
        return
    for one in ast.parse(inspect.getsource(module)).body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for inner in ast.walk(one):
                if isinstance(inner, ast.Dict) and inner.keys and named(inner) <= kinds:
                    yield inner.lineno


def test_tables_stand_where_they_are_found() -> None:
    """A table that is keyed by an enumeration stands at the top of its module."""
    found = {module.__name__: [*inner_tables(module)] for module in MODULES}
    assert {name: lines for name, lines in found.items() if lines} == {}


OF_PROTOS = {
    policy_pb2.EnforceMode: states.Mode,
    admin_pb2.OverridePolicy: states.Override,
    policy_pb2.SettingSource: states.Source,
    policy_pb2.OverrideIgnored: states.Ignored,
    policy_pb2.UserState: states.UserState,
    policy_pb2.ModelState: states.ModelState,
    policy_pb2.NumberState: states.NumberState,
    policy_pb2.Ending: record.Ending,
    admin_pb2.Verdict: record.Verdict,
}
WITHOUT_NUMBERS = {
    policy_pb2.Decision: "allow or deny is a truth value",
    admin_pb2.AppliedAction: "an action's value is its word in the audit trail",
}


def name_of(theirs: Any) -> str:
    return str(theirs.DESCRIPTOR.full_name)


def test_every_enumeration_of_the_protos() -> None:
    """Each is compared with the model's, or has a reason why it is none."""
    there = {
        one.full_name
        for protos in (policy_pb2, admin_pb2, local_pb2)
        for one in enumerations_of(protos.DESCRIPTOR)
    }
    assert there == {name_of(one) for one in (*OF_PROTOS, *WITHOUT_NUMBERS)}


def enumerations_of(holder: Any) -> Iterator[Any]:
    """The descriptors of the enumerations in a file, or in a message, at any depth."""
    yield from holder.enum_types_by_name.values()
    is_file = hasattr(holder, "message_types_by_name")
    for one in (holder.message_types_by_name if is_file else holder.nested_types_by_name).values():
        yield from enumerations_of(one)


@pytest.mark.parametrize(("theirs", "ours"), OF_PROTOS.items(), ids=map(name_of, OF_PROTOS))
def test_numbers_of_the_protos(theirs: Any, ours: type[Enum]) -> None:
    """The model's enumerations have the members and numbers of the protos."""
    names = dict(theirs.items())
    [unspecified] = (name for name, number in names.items() if number == 0)
    prefix = unspecified.removesuffix("UNSPECIFIED")
    given = {name.removeprefix(prefix): number for name, number in names.items() if number}
    assert given == {one.name: one.value for one in ours if one.value}


def test_actions_of_the_protos() -> None:
    """Each number of a change that a declaration makes is an action, there and back."""
    assert set(remote._ACTIONS) == set(admin_pb2.AppliedAction.values())
    there = {number: one for one, number in key_messages._ACTIONS.items()}
    assert there == remote._ACTIONS


NAMES = {frozenset(one.name.lower() for one in kind): kind for kind in ENUMERATIONS if len(kind)}


def test_tables_of_names() -> None:
    """A table whose keys are the names of an enumeration's members, in lower case, has them all."""
    found = set()
    for module in MODULES:
        for name, table in vars(module).items():
            if isinstance(table, dict) and all(isinstance(key, str) for key in table):
                keys = frozenset(table)
                kinds = [names for names in NAMES if len(keys) > 1 and keys <= names]
                assert not kinds or keys in kinds, f"{module.__name__}.{name} lacks a member"
                found |= {f"{module.__name__}.{name}"} if kinds else set()
    assert {"policyd.engine.policy.MODES", "policyd.console.view.log_query.DECISIONS"} <= found


def test_the_vectors_know_every_name() -> None:
    """The vectors' schema knows every mode, state of a user and place that exists."""
    states = {"" if one is UserState.UNKNOWN else one.name.lower() for one in UserState}
    assert set(get_args(conformance.State)) == states
    assert set(get_args(conformance.Mode)) == {one.name.lower() for one in Mode}
    assert set(get_args(conformance.Identifier)) == set(places.BODY_PLACES)


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.html")), ids=lambda path: path.stem)
def test_a_template_names_whole_tables(template: Path) -> None:
    """`names.MODES[...]` in a template is a table of the labels, which lacks no member."""
    whole = {name.rpartition(".")[2] for name in TABLES if name.startswith(labels.__name__)}
    used = set(re.findall(r"\bnames\.([A-Z]+)\b", template.read_text()))
    assert used <= whole | {"FLAGS", "IDENTIFIERS", "UNKNOWN"}


def test_styles_of_members() -> None:
    """A CSS class such as v3, named by a member's number, has a rule for each member that stands
    out.
    """
    templates = "".join(path.read_text() for path in TEMPLATES.glob("*.html"))
    classes = set(re.findall(r'class="[^"]*\b([a-z]+)\{\{ [a-z.]+\.value \}\}', templates))
    rules = (TEMPLATES.parent / "static/console.css").read_text()
    kinds: dict[str, set[Mode] | set[Verdict]] = {
        "m": set(Mode) - {Mode.OFF},  # The default look of a chip.
        "v": set(Verdict),
    }
    assert classes == kinds.keys()
    for letter, members in kinds.items():
        found = {int(number) for number in re.findall(rf"\.{letter}(\d)\b", rules)}
        assert found == {member.value for member in members}


def test_flags_and_places_have_words() -> None:
    """The console has words for each flag that a decision can carry, and for each place of a body
    in which an end user can stand.
    """
    assert set(labels.FLAGS) == TABLE.by_flag.keys() | {INVALID_OVERRIDE}
    assert labels.IDENTIFIERS.keys() == set(places.BODY_PLACES)
