"""The options that set a key's policies and the places of its end users, as several commands take
them.

One option sets the mode and value of any policy, another its override. Two more, which are older,
set those of the original policy.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import click

from policyd.cli.options import option
from policyd.command.settings import listed
from policyd.engine.endpoints import ENDPOINTS, without_place
from policyd.engine.places import BODY_PLACES, HEADER_PLACE, IDENTIFIERS, USER
from policyd.engine.policy import MODES, OVERRIDES, Policy, parse_setting
from policyd.engine.settings import Setting, Settings
from policyd.policies import TABLE

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DEFAULT = "default"
"""The word that leaves a setting to the server's default."""
_ORIGINAL = TABLE.original


class Change(NamedTuple):
    """A change of one policy's setting."""

    policy: str
    fields: Mapping[str, Any]
    """Fields of a Setting, with their new values."""


class Changes(NamedTuple):
    """The changes of a key's settings."""

    policies: tuple[Change, ...] = ()
    accept: tuple[str, ...] | None = None

    def applied(self, current: Settings) -> Settings:
        """The settings of policies after the changes."""
        found = dict(current)
        for name, fields in self.policies:
            found[name] = found.get(name, Setting())._replace(**fields)
        return TABLE.in_order((name, one) for name, one in found.items() if one != Setting())

    def update(self) -> dict[str, Any]:
        """The changes, as Keys.update() takes them."""
        changed: dict[str, Any] = {}
        if self.policies:
            changed["policies"] = self.applied
        if self.accept is not None:
            changed["accept"] = self.accept
        return changed


class _OfPolicy(click.ParamType[Change]):
    """NAME=TEXT: a change of one policy's setting. In the environment, one on each line."""

    envvar_list_splitter = "\n"

    def __init__(self, name: str, read: Callable[[Policy, str], dict[str, Any]]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: Any, ctx: Any) -> Change:
        """See click.ParamType."""
        name, equals, text = (part.strip() for part in value.partition("="))
        policy = TABLE.by_name.get(name)
        if policy is None:
            self.fail(f"there is no policy {name[:64]!r}: {_meant(name)}", param, ctx)
        if not equals:
            self.fail(f"{value[:64]!r} sets nothing: give {self.name}", param, ctx)
        try:
            return Change(policy.name, self._read(policy, text))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: Any, ctx: Any = None) -> str:
        """See click.ParamType."""
        return self.name


def _meant(name: str) -> str:
    if close := difflib.get_close_matches(name, TABLE.by_name, n=1):
        return f"did you mean {close[0]}?"
    return f"the policies are {', '.join(TABLE.by_name)}"


def _mode(policy: Policy, text: str) -> dict[str, Any]:
    if text.lower() == _DEFAULT:
        return {"mode": None, "value": ""}
    setting = parse_setting(policy, text)
    return {"mode": setting.mode, "value": setting.value}


def _override(policy: Policy, text: str) -> dict[str, Any]:
    word = text.lower()
    if word not in (*OVERRIDES, _DEFAULT):
        raise ValueError(f"{policy.name} takes {', '.join(OVERRIDES)}, not {text[:64]!r}")
    if word != _DEFAULT and not policy.header:
        raise ValueError(f"{policy.name} has no header, so there is nothing to allow or to lock")
    return {"override": OVERRIDES.get(word)}


policy_option = option(
    "--policy",
    "policies",
    type=_OfPolicy("NAME=MODE[:VALUE]", _mode),
    multiple=True,
    help=f"A policy's mode ({', '.join(MODES)}) and value, such as NAME=enforce:500; "
    f"NAME={_DEFAULT} leaves them to the server. May be repeated. `policyd policies` lists all.",
)
_key_settings = [
    option(
        f"--{_ORIGINAL.name.replace('_', '-')}",
        "mode",
        type=click.Choice([*MODES, _DEFAULT]),
        help=f"The mode of the policy {_ORIGINAL.title}.",
    ),
    option(
        "--override",
        type=click.Choice(list(OVERRIDES)),
        help="How far requests may override that mode by the header.",
    ),
    policy_option,
    option(
        "--policy-override",
        "overrides",
        type=_OfPolicy("NAME=OVERRIDE", _override),
        multiple=True,
        help=f"How far requests may override a policy by its header: {', '.join(OVERRIDES)}, or "
        f"{_DEFAULT}, which leaves it to the server. May be repeated.",
    ),
    option(
        "--accept",
        help=f"Where an end user may stand: some of {', '.join(BODY_PLACES)} and "
        f"{HEADER_PLACE}NAME, with commas between them; {','.join(IDENTIFIERS)} for new keys.",
    ),
]


def of_key(command: _Command) -> _Command:
    """The options that set a key's settings; see changes()."""
    for add in reversed(_key_settings):
        command = add(command)
    return command


def changes(
    mode: str | None,
    override: str | None,
    policies: Iterable[Change],
    overrides: Iterable[Change],
    accept: str | None,
) -> Changes:
    """What the options of of_key() ask for. Raises UsageError where one policy is set twice."""
    asked = [*policies, *overrides]
    if mode is not None:
        asked.append(Change(_ORIGINAL.name, {"mode": MODES.get(mode), "value": ""}))
    if override is not None:
        asked.append(Change(_ORIGINAL.name, {"override": OVERRIDES[override]}))
    return Changes(joined(asked), None if accept is None else listed(accept))


def joined(asked: Iterable[Change]) -> tuple[Change, ...]:
    """One change for each policy. Raises UsageError where one is set twice."""
    found: dict[str, dict[str, Any]] = {}
    for name, fields in asked:
        held = found.setdefault(name, {})
        if held.keys() & fields.keys():
            raise click.UsageError(f"{name} is set twice: set it once")
        held.update(fields)
    return tuple(Change(name, fields) for name, fields in found.items())


def warn_of_places(accept: Iterable[str]) -> None:
    """Say on stderr which endpoints have none of the places that a key accepts."""
    operations = without_place(accept)
    has_user = {one.operation for one in ENDPOINTS.values() if USER in one.identifiers}
    falling_back = [one for one in operations if one in has_user]
    without = [one for one in operations if one not in has_user]
    if falling_back:
        click.echo(
            f"On {', '.join(falling_back)}, none of these places can be: {USER} counts there.",
            err=True,
        )
    if without:
        click.echo(
            f"On {', '.join(without)}, none of these places can be, and no request there has an "
            "end user that counts: accept another place, if this key is for them.",
            err=True,
        )
